"""Classify failures: translate QRMI's exceptions into this package's errors.

QRMI's exceptions have only a class and a text (qrmi 0.26.4), so both are needed to tell which calls
may be retried and which certainly had no effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    QPUError,
    QPUGoneError,
    ResourceError,
    SessionEndedError,
    TaskUnknownError,
)

__all__ = [
    "TRY_LATER",
    "classify",
    "is_busy",
    "is_lane_refusal",
    "is_session_ended",
    "is_transient",
    "may_submit_again",
    "qrmi_error",
]

_STATUS = re.compile(r"(?:status(?: code)?|body|http)[ :=(]*([1-5]\d\d)\b", re.IGNORECASE)
_CODE_AND_PHRASE = re.compile(r"\b([45]\d\d) ([A-Z][a-z]+)")
# The client for IBM Quantum System API tells the status in words, and all of 5xx by the same one.
_STATUS_IN_WORDS = {"server error: ": 500, "request timeout: ": 408, "access denied: ": 403}
_TRANSIENT = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_LANES_TAKEN = frozenset({423, 429})
# A gateway may answer 5xx although the server has acted on the request. A 4xx rules that out.
_WITHOUT_EFFECT = frozenset(range(400, 500)) - {408}
_CLIENT_ERRORS = frozenset({"UnsupportedPayloadError", "UnsupportedFunctionError"})
# The client raises these for arguments that it cannot convert; its own errors are RuntimeErrors.
_ARGUMENT_ERRORS = (TypeError, ValueError, OverflowError)
_STATUS_OF_CLASS = {
    "InvalidInputError": 400,
    "AuthenticationFailedError": 401,
    "ResourceNotFoundError": 404,
    "TaskNotFoundError": 404,
}
_OF_A_SESSION = ("task_start", "release")
_CUT_OFF = re.compile(
    r"error sending request|client error \((?:Connect|SendRequest)|error decoding|serde"
    r"|EOF while parsing",
    re.IGNORECASE,
)
# Failures of the login, before any other request.
_LOGIN = re.compile(
    r"Failed to obtain access token|Token request failed"
    r"|error sending request for url \(\S*/token\)|munge encode failed",
    re.IGNORECASE,
)
# Failures of task_start before the task is submitted.
_BEFORE_SUBMISSION = re.compile(rf"failed to upload to S3|{_LOGIN.pattern}", re.IGNORECASE)
# The client's storage library gives a code only if the storage sent one. The codes that no
# repetition would mend: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_FETCH = re.compile(r"retrieving an object from S3 bucket: (.*)")
_NOT_FETCHABLE = re.compile(
    r"NoSuch|NotFound|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
    r"|InvalidToken|InvalidObjectState|PermanentRedirect|AuthorizationHeaderMalformed"
)
# What the client finds wrong with its settings while it prepares the submission.
_SETTINGS = re.compile(
    r"S3 bucket is not configured|invalid presigning duration|credentials are not configured",
    re.IGNORECASE,
)
# A client that repeats a submission on its own may be told that its first attempt was accepted. The
# one for IBM Quantum System API gives 400 and 409 the same class, so the text must tell them apart.
_DUPLICATE = re.compile(r"\bjob\b.*\balready exists\b|no error body available", re.IGNORECASE)
TRY_LATER = "Check the QPU's state with `qpu list` and try again later."

# IBM's code for it is 1217. Pasqal's warden says "Session has been revoked" or "Invalid session".
_SESSION = re.compile(
    r"\bsession\b.*\b(closed|expired|ended|not found|revoked)\b|\binvalid session\b"
    r"|\"code\":\s*1217\b",
    re.IGNORECASE,
)
_SESSION_STATUS = frozenset({400, 403, 404, 409, 410})


def classify(
    error: BaseException,
    qpu: str,
    method: str,
    args: tuple[object, ...],
    remedies: Mapping[str, str] = MappingProxyType({}),
) -> ResourceError | ConfigError | TaskUnknownError:
    """Return the error to raise for an exception of QRMI's client.

    Args:
        error: QRMI's exception.
        qpu: The QPU's name.
        method: The method that was called.
        args: Its arguments; for a method about a task, the first is the task's id.
        remedies: The resource type's own remedies; see `ResourceType`.
    """
    name, text = type(error).__name__, str(error)
    status = _find_status(name, text)
    message = f"QPU {qpu!r}: {method} failed: {text.rstrip()}"
    if name in ("ConfigError", "EnvVarNotSetError") or _SETTINGS.search(text):
        return ConfigError(f"{message}. Correct its `environment` in qrmi_config.json.")
    if status == 404 and method == "task_logs":  # the vendor may lack the route, not the task
        return ResourceError(f"{message}. The vendor has no log of this task.", qpu, method, 404)
    if status == 404 and method.startswith("task_") and method != "task_start":
        return TaskUnknownError(f"{message}. The vendor does not know the task.", qpu, str(args[0]))
    if status == 401:
        remedy = "Renew the QPU's credentials in qrmi_config.json."
        return AuthenticationError(f"{message}. {remedy}", qpu, method, 401, had_no_effect=True)
    if method in _OF_A_SESSION and status in _SESSION_STATUS and _SESSION.search(text):
        ended = f"the session of QPU {qpu!r} has ended: it was closed or revoked, or has expired."
        return SessionEndedError(ended, qpu, method, status, retryable=True, had_no_effect=True)
    fetch = _FETCH.search(text)
    is_cut_off = bool(
        _CUT_OFF.search(text)
        or _BEFORE_SUBMISSION.search(text)
        or (fetch and not _NOT_FETCHABLE.search(fetch[1]))
    )
    is_transient = status in _TRANSIENT or (status is None and is_cut_off)
    had_no_effect = name in _CLIENT_ERRORS or status in _WITHOUT_EFFECT or bool(_LOGIN.search(text))
    for phrase, own_remedy in remedies.items():
        if phrase in text:
            message = f"{message.removesuffix('.')}. {own_remedy.format(qpu=qpu)}"
    if method == "task_start":
        is_early = isinstance(error, _ARGUMENT_ERRORS) or bool(_BEFORE_SUBMISSION.search(text))
        had_no_effect = is_early or (had_no_effect and not _DUPLICATE.search(text))
    # The remedy for a submission whose outcome is unknown is another one: see `tasks.run`.
    if is_transient and (had_no_effect or method != "task_start"):
        message = f"{message.removesuffix('.')}. {TRY_LATER}"
    return ResourceError(message, qpu, method, status, is_transient, had_no_effect)


def _find_status(name: str, text: str) -> int | None:
    """Return the HTTP status that a text or a class of QRMI's stands for; `None` if it has none."""
    match = _STATUS.search(text)
    found = int(match[1]) if match else _status_with_phrase(text)
    of_class = _STATUS_OF_CLASS.get(name)
    if found is None:
        words = (code for start, code in _STATUS_IN_WORDS.items() if text.startswith(start))
        return next(words, of_class)
    # A login that is refused, with whatever status; but not one that the server could not answer.
    return of_class if of_class == 401 and found not in _TRANSIENT else found


def _status_with_phrase(text: str) -> int | None:
    from http import HTTPStatus  # most processes see no failure

    phrases = {status.value: status.phrase for status in HTTPStatus}
    for code, word in _CODE_AND_PHRASE.findall(text):
        if phrases.get(int(code), "").split(" ")[0] == word:
            return int(code)
    return None


def is_transient(error: BaseException) -> bool:
    """Return whether a read-only request may succeed if it is repeated."""
    # While an identity service is down, some clients call without a token and get a 401.
    return isinstance(error, AuthenticationError) or (
        isinstance(error, QPUError) and error.retryable
    )


def is_busy(error: BaseException) -> bool:
    """Return whether the vendor refused temporarily (busy, reserved, 429), without any effect."""
    return isinstance(error, ResourceError) and error.retryable and error.had_no_effect


def is_lane_refusal(error: BaseException) -> bool:
    """Return whether the vendor refused a task because the QPU's lanes are taken or reserved."""
    return is_busy(error) and getattr(error, "status_code", None) in _LANES_TAKEN


def is_session_ended(error: BaseException) -> bool:
    """Return whether a release failed because the vendor has already ended the session."""
    is_gone = isinstance(error, ResourceError) and error.status_code in (404, 410)
    return is_gone or isinstance(error, SessionEndedError)


def may_submit_again(error: BaseException) -> bool:
    """Return whether a submission certainly had no effect and may succeed if it is repeated."""
    if isinstance(error, (SessionEndedError, QPUGoneError)):
        return False  # a closed session does not reopen
    return isinstance(error, AuthenticationError) or is_busy(error)


def qrmi_error() -> type[Exception]:
    """Return the base class of QRMI's exceptions."""
    qrmi: Any = import_module("qrmi")  # its type stubs do not have the class (0.26.4)
    base: type[Exception] = qrmi.QrmiError
    return base
