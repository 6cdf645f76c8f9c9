"""Which error an exception of QRMI's client becomes, and whether the request may be repeated."""

from __future__ import annotations

from http import HTTPStatus

import pytest
import qrmi

from qrmi_workflows.client.failures import (
    classify,
    is_busy,
    is_lane_refusal,
    is_session_ended,
    is_transient,
    may_submit_again,
)
from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    PayloadError,
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskUnknownError,
)
from qrmi_workflows.vendors.registry import registered_type


def failed(
    text: str, method: str = "task_start", kind: type[Exception] = qrmi.QrmiError
) -> QPUError:
    """Classify a failure of QRMI's client."""
    return classify(kind(text), "ibm_fez", method, ("task-1",))


@pytest.mark.parametrize("status", [408, 423, 425, 429, 500, 502, 503, 504])
def test_a_temporary_failure_is_retryable_and_says_what_to_do(status):
    error = failed(f"HTTP status {status}", "task_status")

    assert type(error) is ResourceError
    assert (error.status_code, error.retryable) == (status, True)
    assert str(error) == (
        f"QPU 'ibm_fez': task_status failed: HTTP status {status}. Check the QPU's state "
        "with `qpu list` and try again later."
    )


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 501])
def test_a_permanent_failure_is_not_retryable(status):
    error = failed(f"status code: {status}")

    assert (error.status_code, error.retryable) == (status, False)


@pytest.mark.parametrize(
    ("status", "had_no_effect"),
    [(400, True), (408, False), (429, True), (500, False), (503, False)],
)
def test_a_rejected_request_had_no_effect_but_a_failed_one_may_have(status, had_no_effect):
    """A gateway may answer 5xx for a server that has acted on the request."""
    assert failed(f"status {status}").had_no_effect is had_no_effect


@pytest.mark.parametrize(
    "text",
    ["error sending request for url", "error decoding response body", "EOF while parsing a value"],
)
def test_a_truncated_answer_is_retryable_and_the_request_may_have_had_an_effect(text):
    error = failed(text)

    assert error.retryable
    assert not error.had_no_effect
    assert error.status_code is None


@pytest.mark.parametrize(
    ("kind", "text", "status"),
    [
        (qrmi.QrmiError, "server error: (no error body available; request URL: u)", 500),
        (qrmi.QrmiError, "request timeout: (no error body available; request URL: u)", 408),
        (qrmi.QrmiError, "API error (425 Too Early): (no error body available)", 425),
        (qrmi.QrmiError, "Token request failed: 503 Service Unavailable ", 503),
        (qrmi.QrmiError, "request failed: reasons[0]: client error (Connect), reas", None),
        (qrmi.QrmiError, "request failed: reasons[0]: client error (SendRequest), ", None),
        (
            qrmi.AuthenticationFailedError,
            "authentication failed: Failed to obtain access token. reason: Bad Gateway "
            "(502 Bad Gateway), url: u",
            502,
        ),
    ],
)
def test_a_server_that_fails_for_a_moment_may_be_asked_again(kind, text, status):
    """The texts are those of qrmi 0.26.4, for IBM Quantum System API and Pasqal Cloud."""
    error = failed(text, "task_status", kind)

    assert type(error) is ResourceError
    assert (error.status_code, error.retryable) == (status, True)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("access denied: (no error body available; request URL: u)", 403),
        ("API error (410 Gone): (no error body available; request URL: u)", 410),
        ("Token request failed: 403 Forbidden ", 403),
        ("it has 503 Qubits", None),
    ],
)
def test_a_refusal_is_not_repeated(text, status):
    error = failed(text, "task_status")

    assert (error.status_code, error.retryable) == (status, False)


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        ("unhandled error", True),
        ("unhandled error (SlowDown)", True),
        ("unhandled error (InternalError)", True),
        ("unhandled error (AccessDenied)", False),
        ("unhandled error (NoSuchBucket)", False),
        ("unhandled error (ExpiredToken)", False),
        ("NoSuchKey: The key does not exist.", False),
    ],
)
def test_a_result_is_asked_for_again_unless_the_storage_refuses_it(code, retryable):
    text = f"An error occurred while retrieving an object from S3 bucket: {code}"

    assert failed(text, "task_result").retryable is retryable


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_login_may_be_refused_with_any_status(status):
    phrase = HTTPStatus(status).phrase
    text = f"Failed to obtain access token. reason: {phrase} ({status} {phrase}), url: u"

    error = failed(text, "task_start", qrmi.AuthenticationFailedError)

    assert type(error) is AuthenticationError
    assert error.had_no_effect


def test_a_failure_without_a_status_is_not_retryable():
    assert not failed("something else").retryable


def test_a_number_that_is_not_a_status_is_not_read_as_one():
    assert failed("the answer had 404 bytes").status_code is None


def test_rejected_credentials_had_no_effect():
    for error in (failed("status 401"), failed("denied", kind=qrmi.AuthenticationFailedError)):
        assert type(error) is AuthenticationError
        assert error.had_no_effect
        assert "Renew the QPU's credentials" in str(error)


@pytest.mark.parametrize("method", ["task_status", "task_result", "task_stop"])
def test_a_task_that_is_not_found_is_unknown(method):
    for error in (failed("status 404", method), failed("gone", method, qrmi.TaskNotFoundError)):
        assert type(error) is TaskUnknownError
        assert error.task_id == "task-1"


def test_a_log_that_is_not_found_says_nothing_about_the_task():
    """Pasqal's warden has no route for logs."""
    error = failed("status 404", "task_logs")

    assert type(error) is ResourceError
    assert "no log of this task" in str(error)


def test_a_target_that_is_not_found_is_not_an_unknown_task():
    assert type(failed("status 404", "target")) is ResourceError


@pytest.mark.parametrize(
    "text",
    [
        "status 400: session s-1 is closed",
        "status 404: Session expired",
        'Status: 403 Forbidden, Fail {"detail":"Session has been revoked."}',
        'Status: 403 Forbidden, Fail {"detail":"Invalid session."}',
        'status code: 400, {"errors":[{"code": 1217,"message":"Not accepted."}]}',
    ],
)
def test_a_closed_session_is_recognised(text):
    """The message is a sentence; the vendor's own answer is the cause."""
    error = failed(text)

    assert type(error) is SessionEndedError
    assert error.had_no_effect
    assert str(error) == (
        "the session of QPU 'ibm_fez' has ended: it was closed or revoked, or has expired."
    )
    assert is_session_ended(failed(text, "release"))
    assert type(failed(text, "acquire")) is ResourceError, "only a submission needs a session"


@pytest.mark.parametrize(
    ("detail", "remedy"),
    [
        ("Endpoint restricted to root user.", "fresnel_QRMI_JOB_ACQUISITION_TOKEN in its env"),
        ("User ID not authorized.", "Ask your administrators to add you."),
        ("Session belongs to another user.", "as the user that QRMI_JOB_UID names."),
    ],
)
def test_a_refusal_that_the_vendor_knows_has_its_own_remedy(detail, remedy):
    """The answers are those of Pasqal's warden 0.1.0."""
    answer = qrmi.QrmiError(f'Status: 403 Forbidden, Fail {{"detail":"{detail}"}}')
    own = registered_type("pasqal-local").remedies

    error = classify(answer, "fresnel", "acquire", (), own)

    assert remedy in str(error)
    assert (error.status_code, error.retryable) == (403, False)
    assert remedy not in str(classify(answer, "fresnel", "acquire", ()))


def test_a_credential_that_munge_does_not_make_is_a_failure_of_this_host():
    answer = qrmi.QrmiError("munge encode failed: Socket communication error")

    error = classify(answer, "fresnel", "acquire", (), registered_type("pasqal-local").remedies)

    assert "munged does not answer on this host" in str(error)
    assert error.retryable, "munged may be restarting"


def test_incomplete_settings_are_a_configuration_error():
    error = failed("QRMI_X is not set", "acquire", qrmi.EnvVarNotSetError)

    assert type(error) is ConfigError
    assert "Correct its `environment` in qrmi_config.json" in str(error)


def test_a_payload_that_the_client_rejects_had_no_effect():
    error = failed("cannot send this", kind=qrmi.UnsupportedPayloadError)

    assert error.had_no_effect
    assert not error.retryable


@pytest.mark.parametrize(
    "text",
    [
        "S3 bucket is not configured. Use ClientBuilder.with_s3_bucket() to use this function.",
        "invalid presigning duration: `expires_in` must be no longer than one week",
        "auth token is missing or expired and refresh credentials are not configured",
    ],
)
def test_settings_that_the_client_misses_while_it_submits_are_a_configuration_error(text):
    assert type(failed(text)) is ConfigError


@pytest.mark.parametrize(
    "error",
    [
        qrmi.QrmiError("failed to upload to S3: unhandled error"),
        qrmi.QrmiError("error sending request for url (http://127.0.0.1:1/x/oauth/token)"),
        qrmi.QrmiError("munge encode failed: Socket communication error"),
        qrmi.QrmiError("Token request failed: 503 Service Unavailable "),
        TypeError("'str' object is not an instance of 'Payload'"),
    ],
)
def test_a_failure_before_the_submission_had_no_effect(error):
    assert classify(error, "ibm_fez", "task_start", ()).had_no_effect


@pytest.mark.parametrize(
    "error",
    [
        qrmi.QrmiError("error sending request for url (http://127.0.0.1:1/x/jobs)"),
        qrmi.QrmiError("server error: (no error body available; request URL: http://x/v1/jobs)"),
        qrmi.QrmiError("access denied: (no error body available; request URL: http://x/v1/jobs)"),
        qrmi.InvalidInputError('{"status_code":409,"title":"Job 1 already exists."}'),
        qrmi.InvalidInputError("(no error body available; request URL: http://x/v1/jobs)"),
    ],
)
def test_a_failure_after_which_the_vendor_may_have_the_task_is_not_called_one(error):
    """A client that repeats a submission may be told that its first attempt was accepted."""
    assert not classify(error, "ibm_fez", "task_start", ()).had_no_effect


@pytest.mark.parametrize(("status", "is_refusal"), [(423, True), (429, True), (503, False)])
def test_a_refusal_for_want_of_a_lane_is_recognised(status, is_refusal):
    assert is_lane_refusal(failed(f"status {status}")) is is_refusal


BUSY = ResourceError("busy", retryable=True, had_no_effect=True)
REJECTED = ResourceError("rejected", had_no_effect=True)
CUT_OFF = ResourceError("cut off", retryable=True)
UNAUTHENTICATED = AuthenticationError("denied", had_no_effect=True)
SILENT = DeadlineError("silent", retryable=True)
SESSION_ENDED = SessionEndedError("closed", retryable=True, had_no_effect=True)
OTHERS = [PayloadError("no"), ConfigError("no"), ValueError("no")]


@pytest.mark.parametrize(
    ("error", "transient", "busy", "again"),
    [
        (BUSY, True, True, True),
        (REJECTED, False, False, False),
        (CUT_OFF, True, False, False),
        (UNAUTHENTICATED, True, False, True),
        (SILENT, True, False, False),
        (SESSION_ENDED, True, True, False),
        *((error, False, False, False) for error in OTHERS),
    ],
    ids=lambda value: str(value) if isinstance(value, Exception) else None,
)
def test_what_may_be_repeated(error, transient, busy, again):
    """A submission is repeated only if it certainly was not paid for."""
    assert is_transient(error) is transient
    assert is_busy(error) is busy
    assert may_submit_again(error) is again
