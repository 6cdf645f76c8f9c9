"""Redaction of credentials in vendors' messages."""

from __future__ import annotations

from qrmi_workflows.client.redaction import redact, secrets_of

ENVIRONMENT = {
    "QRMI_IBM_QS_ENDPOINT": "https://ibm.example/v1",
    "QRMI_IBM_QS_S3_BUCKET": "results",
    "QRMI_IBM_QS_S3_REGION": "us-east",
    "QRMI_IBM_QS_IAM_APIKEY": "key/with+signs",
    "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": "access-key",
    "QRMI_JOB_ID": "12345678",
    "QRMI_JOB_UID": "1234567",
    "QRMI_JOB_TIMEOUT_SECONDS": "86400",
    "QRMI_JOB_ACQUISITION_TOKEN": "session-7",
}


def test_addresses_limits_and_the_jobs_ids_are_not_secrets():
    assert secrets_of(ENVIRONMENT) == {"key/with+signs", "access-key", "session-7"}


def test_known_credentials_are_redacted_also_in_urls():
    message = "403 for key/with+signs at https://ibm.example/v1?key=key%2Fwith%2Bsigns"

    assert redact(message, secrets_of(ENVIRONMENT)) == "403 for … at https://ibm.example/v1?key=…"


def test_a_credential_that_contains_another_is_redacted_whole():
    assert redact("denied: abcdef-123", {"abcdef", "abcdef-123"}) == "denied: …"


def test_credentials_that_only_the_client_knows_are_recognised_by_their_form():
    message = (
        'Authorization: Bearer abc.def "token": "eyJhbGciOi.eyJhdWQi.c2ln" '
        "GET /o.json?X-Amz-Credential=AK%2F2026&X-Amz-Date=2026&X-Amz-Signature=0a1b"
    )

    assert redact(message) == (
        'Authorization: Bearer … "token": "…" '
        "GET /o.json?X-Amz-Credential=…&X-Amz-Date=2026&X-Amz-Signature=…"
    )
