"""Malformed requests get the vendor's error document and status, never a traceback."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from emulator_clients import ask, ibm_headers

QCS, QS, PASQAL = "/ibm-quantum-compute-service", "/ibm-quantum-system", "/pasqal-cloud"
BATCHES = f"{PASQAL}/core-fast/api/v1/batches"
JOB = {"program_id": "sampler", "backend": "ibm_fez", "params": {"pubs": [["x"]]}}


@pytest.fixture(scope="module")
def pasqal(emulator) -> dict[str, Any]:
    """Return the headers of an authorised request to Pasqal Cloud, and the project id."""
    credentials = json.loads((emulator.folder / "credentials.json").read_text())
    secrets = credentials["secrets"]["pasqal-cloud"]
    form = (
        f"grant_type=client_credentials&client_id={secrets['client_id']}"
        f"&client_secret={secrets['client_secret']}"
    )
    _, answer = ask(emulator, "POST", f"{PASQAL}/oauth/token", form.encode())
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    return {"headers": headers, "project_id": secrets["project_id"]}


def check_jsend(answer: tuple[int, Any], status: int) -> None:
    """Check the status and the document of a request that Pasqal Cloud has rejected."""
    assert answer[0] == status, answer
    assert answer[1]["status"] == "fail"
    assert answer[1]["code"] == str(status)
    assert answer[1]["data"]["description"] == answer[1]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/jobs", b"{", 400),
        ("POST", "/jobs", b"\xff\xfe", 400),
        ("POST", "/jobs", b"[" * 100_000, 400),
        ("POST", "/jobs", [], 400),
        ("POST", "/jobs", {}, 400),
        ("POST", "/jobs", {**JOB, "backend": "nowhere"}, 404),
        ("POST", "/jobs", {**JOB, "backend": 7}, 400),
        ("POST", "/jobs", {**JOB, "program_id": "nonsense"}, 404),
        ("POST", "/jobs", {**JOB, "params": "x"}, 400),
        ("POST", "/jobs", {**JOB, "params": {"pubs": "x"}}, 400),
        ("POST", "/jobs", {**JOB, "session_id": "nowhere"}, 404),
        ("POST", "/jobs", {**JOB, "session_id": 7}, 400),
        ("POST", "/sessions", {"backend": "ibm_fez", "mode": "fast"}, 400),
        ("POST", "/sessions", {"backend": ["ibm_fez"], "mode": "batch"}, 400),
        ("POST", "/sessions", {"backend": "ibm_fez", "mode": "batch", "max_ttl": -1}, 400),
        ("POST", "/sessions", {"backend": "ibm_fez", "mode": "batch", "max_ttl": "x"}, 400),
        ("PATCH", "/sessions/x", {"accepting_jobs": False}, 404),
        ("GET", "/jobs?limit=x", None, 400),
        ("GET", "/jobs?offset=-1", None, 400),
        ("GET", "/jobs?created_after=yesterday", None, 400),
        ("GET", "/jobs?created_before=0000-00-00", None, 400),
        ("GET", "/jobs/x/results", None, 404),
        ("POST", "/jobs/x/cancel", None, 404),
        ("GET", "/backends/nowhere/configuration", None, 404),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/backends", None, 404),
    ],
)
def test_ibms_compute_service(emulator, method, path, body, status):
    """The document has a trace and `errors` with code, message, solution and more_info."""
    answer = ask(emulator, method, QCS + path, body, ibm_headers(emulator))
    assert answer[0] == status
    assert answer[1]["errors"][0].keys() == {"code", "message", "solution", "more_info"}
    assert answer[1]["trace"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"id": "x"}, 400),
        ({"backend": "nowhere"}, 404),
        ({"program_id": "noiselearner"}, 400),
        ({"timeout_secs": 0}, 400),
        ({"storage": {}}, 400),
        ({"storage": {"input": {"presigned_url": "file:///etc/passwd"}}}, 400),
    ],
)
def test_ibms_system_api(emulator, changed, status):
    """The document has the status_code and `errors` with code, message and more_info."""
    url = {"presigned_url": "http://127.0.0.1:9/x", "type": "s3_compatible"}
    body = {
        "id": "00000000-0000-4000-8000-000000000001",
        "backend": "ibm_system",
        "program_id": "sampler",
        "timeout_secs": 60,
        "storage": {"input": url, "results": url, "logs": url},
        **changed,
    }
    headers = ibm_headers(emulator, "ibm-quantum-system")
    answer = ask(emulator, "POST", f"{QS}/v1/jobs", body, headers)
    assert answer[0] == status == answer[1]["status_code"]
    assert answer[1]["errors"][0].keys() == {"code", "message", "more_info"}


def test_the_object_store(emulator):
    """A missing and an unknown signature get S3's error codes, in XML."""
    path = f"{QS}/s3/qrmi/key"
    status, body = ask(emulator, "GET", path)
    assert status == 403
    assert b"<Code>AccessDenied</Code>" in body
    headers = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=x/20130524/r/s3/aws4_request, "
        "SignedHeaders=host, Signature=00"
    }
    assert b"<Code>InvalidAccessKeyId</Code>" in ask(emulator, "GET", path, headers=headers)[1]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"project_id": "x"}, 403),
        ({"device_type": "IMAGINED"}, 404),
        ({"device_type": None, "sequence_builder": "{}"}, 400),
        ({"device_type": None, "sequence_builder": '{"device": "FRESNEL"}'}, 400),
        ({"jobs": []}, 400),
        ({"jobs": [{"runs": 0}]}, 400),
        ({"jobs": [{"runs": "x"}]}, 400),
        ({"jobs": [{"runs": 2001}]}, 400),
        ({"jobs": [{"runs": 2**63}]}, 400),
        ({"jobs": ["x"]}, 400),
        ({"jobs": [{"runs": 1, "variables": 3}]}, 400),
        ({"sequence_builder": None}, 400),
        ({"sequence_builder": 3}, 400),
    ],
)
def test_pasqal_cloud(emulator, pasqal, changed, status):
    """The document follows JSend: `status`, `code`, `message` and `data`."""
    body = {
        "project_id": pasqal["project_id"],
        "device_type": "FRESNEL",
        "sequence_builder": '{"device": {}}',
        "jobs": [{"runs": 1}],
        **changed,
    }
    check_jsend(ask(emulator, "POST", BATCHES, body, pasqal["headers"]), status)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ("x", 400),
        (7, 400),
        (b"null", 400),
        ({}, 400),
        ({"batch_ids": "x"}, 400),
        ({"batch_ids": [["x"]]}, 422),
        ({"batch_ids": ["nowhere"]}, 422),
        ({"batch_ids": [2**70]}, 422),
    ],
)
def test_cancelling_batches_of_pasqal_cloud(emulator, pasqal, body, status):
    """The body must be an object with a list of batch ids."""
    check_jsend(ask(emulator, "PATCH", f"{BATCHES}/cancel", body, pasqal["headers"]), status)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?limit=0", 422),
        ("?limit=101", 422),
        ("?limit=x", 422),
        ("?offset=-1", 422),
        ("?status=ASLEEP", 422),
        ("?id=nowhere", 422),
        ("?start_date=yesterday", 422),
        ("?project_id=1", 422),
        (f"?offset={10**30}", 200),
        ("?no_such_filter=1", 200),
    ],
)
@pytest.mark.parametrize("path", [BATCHES, f"{PASQAL}/core-fast/api/v2/jobs"])
def test_queries_of_pasqal_cloud(emulator, pasqal, path, query, status):
    """A value that a filter cannot have is refused; a filter that does not exist is ignored."""
    answer = ask(emulator, "GET", path + query, headers=pasqal["headers"])
    assert answer[0] == status, answer
    if status != 200:
        check_jsend(answer, status)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", f"limit={10**30}", "nonsense=1", ""])
def test_a_page_of_ibms_service_that_is_out_of_range_has_the_default_length(emulator, query):
    """Its API reference says so. What it does not know is ignored."""
    status, page = ask(emulator, "GET", f"{QCS}/jobs?{query}", headers=ibm_headers(emulator))
    assert (status, page["limit"], page["offset"]) == (200, 200, 0)


def test_a_page_past_the_end_of_ibms_service_is_empty(emulator):
    path = f"{QCS}/jobs?offset={10**30}"
    status, page = ask(emulator, "GET", path, headers=ibm_headers(emulator))
    assert (status, page["jobs"]) == (200, [])


NASTY = (2**63, -(2**63) - 1, 10**400, 1e300, "\ud800", "\x00", "", True, None, [], {}, ["\udfff"])


def with_nasty_values(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return copies of a request, each with one of its values replaced, at any depth."""
    for key, value in body.items():
        yield from ({**body, key: nasty} for nasty in NASTY)
        if isinstance(value, dict):
            yield from ({**body, key: inner} for inner in with_nasty_values(value))


STORED = {name: {"presigned_url": "http://127.0.0.1:9/x"} for name in ("input", "results", "logs")}
REQUESTS = {
    "a job of IBM's service": (
        "POST",
        f"{QCS}/jobs",
        {**JOB, "backend": "ibm_quick", "session_id": "x", "tags": ["a"], "cost": 1},
    ),
    "a session": ("POST", f"{QCS}/sessions", {"backend": "x", "mode": "batch", "max_ttl": 9}),
    "the end of a session": ("PATCH", f"{QCS}/sessions/x", {"accepting_jobs": False}),
    "a job of IBM's system": (
        "POST",
        f"{QS}/v1/jobs",
        {"id": "x", "backend": "x", "program_id": "sampler", "timeout_secs": 1, "storage": STORED},
    ),
    "a batch": (
        "POST",
        BATCHES,
        {
            "project_id": "x",
            "device_type": "FRESNEL",
            "sequence_builder": "{}",
            "jobs": [],
            "open": True,
            "tags": ["a"],
        },
    ),
    "cancelling batches": ("PATCH", f"{BATCHES}/cancel", {"batch_ids": ["x"]}),
    "a job of IQM's": (
        "POST",
        "/iqm-server/api/v1/jobs/garnet:mock/circuit",
        {"circuits": [{"instructions": []}], "shots": 1},
    ),
    "a job of Felis": (
        "POST",
        "/alice-bob-felis/v1/jobs/",
        {
            "target": "EMU:40Q:LOGICAL_NOISELESS",
            "inputDataFormat": "HUMAN_QIR",
            "outputDataFormat": "HISTOGRAM",
            "inputParams": {"nbShots": 1},
        },
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_no_value_of_a_request_causes_an_internal_error(emulator, pasqal, name):
    """Numbers of more than 64 bits, halves of surrogate pairs and values of other types."""
    method, path, body = REQUESTS[name]
    secrets = json.loads((emulator.folder / "credentials.json").read_text())["secrets"]
    felis = secrets["alice-bob-felis"]
    basic = b64encode(f"{felis['username']}:{felis['password']}".encode()).decode()
    headers = {
        "ibm-quantum-compute-service": ibm_headers(emulator),
        "ibm-quantum-system": ibm_headers(emulator, "ibm-quantum-system"),
        "pasqal-cloud": pasqal["headers"],
        "iqm-server": {"Authorization": f"Bearer {secrets['iqm-server']['token']}"},
        "alice-bob-felis": {"Authorization": f"Basic {basic}"},
    }[path.split("/")[1]]
    if "project_id" in body:
        body = {**body, "project_id": pasqal["project_id"]}
    answers = [ask(emulator, method, path, each, headers)[0] for each in with_nasty_values(body)]
    assert 500 not in answers
    assert max(answers.count(401), answers.count(403)) < len(answers), "the caller is authorised"
    assert any(400 <= status < 500 for status in answers)


def test_pasqal_cloud_without_a_token_and_with_a_corrupt_body(emulator, pasqal):
    """The statuses are 401, and 400 for a body that is not in the stated encoding."""
    assert ask(emulator, "POST", BATCHES, {})[0] == 401
    headers = {**pasqal["headers"], "Content-Encoding": "gzip"}
    assert ask(emulator, "POST", BATCHES, b"not gzip", headers)[0] == 400


def test_pasqal_local(emulator):
    """The document has FastAPI's `detail`."""
    path = "/pasqal-local/fresnel_local"
    assert ask(emulator, "GET", f"{path}/jobs") == (401, {"detail": "Missing MUNGE credential"})
    assert ask(emulator, "GET", f"{path}/accessible")[1]["is_accessible"] is True
    assert ask(emulator, "GET", "/pasqal-local/nowhere/accessible")[0] == 404


@pytest.mark.parametrize(
    ("path", "form", "status", "field"),
    [
        (f"{QCS}/identity/token", b"grant_type=x&apikey=y", 400, "errorCode"),
        (
            f"{QCS}/identity/token",
            b"grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=y",
            400,
            "errorCode",
        ),
        (f"{PASQAL}/oauth/token", b"grant_type=x", 400, "error"),
        (f"{PASQAL}/oauth/token", b"grant_type=client_credentials&client_id=x", 401, "error"),
    ],
)
def test_token_endpoints(emulator, path, form, status, field):
    """Errors have the form of IAM and of Auth0."""
    answer = ask(emulator, "POST", path, form)
    assert answer[0] == status
    assert field in answer[1]


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c", "", "e30.e30.e30"])
def test_forged_tokens_are_rejected(emulator, token):
    """None of them causes an internal error."""
    headers = {**ibm_headers(emulator), "Authorization": f"Bearer {token}"}
    assert ask(emulator, "GET", f"{QCS}/backends", headers=headers)[0] == 401


def test_a_token_is_valid_for_one_vendor_only(emulator, pasqal):
    """Tokens are bound to the API that issued them."""
    headers = {**ibm_headers(emulator), **pasqal["headers"]}
    assert ask(emulator, "GET", f"{QCS}/backends", headers=headers)[0] == 401
