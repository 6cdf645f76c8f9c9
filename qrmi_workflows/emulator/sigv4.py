"""Checks of AWS Signature Version 4, in the Authorization header or in a presigned URL.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote

__all__ = ["SignatureError", "SignedRequest", "check_signature"]

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = "UNSIGNED-PAYLOAD"
_CLOCK_SKEW_SECONDS = 900
_HEADER = re.compile(
    _ALGORITHM + r"\s+Credential=([^,\s]+)\s*,\s*SignedHeaders=([^,\s]+)\s*,\s*Signature=(\w+)"
)


class SignatureError(Exception):
    """A request that S3 would reject.

    Args:
        code: S3's error code (`SignatureDoesNotMatch`).
        message: The reason.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """The parts of a request that a signature covers.

    Attributes:
        method: The HTTP method.
        path: The path as sent, percent-encoded.
        query: The query string as sent.
        headers: The headers, with their names in lower case.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Claim:
    """A request's signature with the parameters that it was made with."""

    credential: str
    signed_headers: str
    signature: str
    timestamp: str
    expires_seconds: int | None
    payload_hash: str


def check_signature(
    request: SignedRequest, keys: Mapping[str, str], body: bytes, now: float
) -> None:
    """Check a request's signature.

    Args:
        request: The request.
        keys: The secret access keys by access key id.
        body: The request's body.
        now: The current time in seconds since the epoch.

    Raises:
        SignatureError: The signature is missing, wrong or expired.
    """
    claim = _from_query(request) if "X-Amz-Signature=" in request.query else _from_header(request)
    access_key, _, scope = claim.credential.partition("/")
    secret = keys.get(access_key)
    if secret is None:
        raise SignatureError("InvalidAccessKeyId", f"The access key id {access_key!r} is unknown.")
    expected = _expected_signature(request, claim, secret, scope)
    if not hmac.compare_digest(expected, claim.signature):
        raise SignatureError("SignatureDoesNotMatch", "The signature does not match the request.")
    _check_time(claim, now)
    if len(claim.payload_hash) == 64 and hashlib.sha256(body).hexdigest() != claim.payload_hash:
        raise SignatureError("XAmzContentSHA256Mismatch", "The body does not match its hash.")


def _from_header(request: SignedRequest) -> _Claim:
    match = _HEADER.fullmatch(request.headers.get("authorization", "").strip())
    if match is None:
        raise SignatureError("AccessDenied", "The request is not signed with AWS4-HMAC-SHA256.")
    credential, signed_headers, signature = match.groups()
    return _Claim(
        credential,
        signed_headers,
        signature,
        timestamp=request.headers.get("x-amz-date", ""),
        expires_seconds=None,
        payload_hash=request.headers.get("x-amz-content-sha256", _UNSIGNED),
    )


def _from_query(request: SignedRequest) -> _Claim:
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    try:
        return _Claim(
            query["X-Amz-Credential"],
            query["X-Amz-SignedHeaders"],
            query["X-Amz-Signature"],
            timestamp=query["X-Amz-Date"],
            expires_seconds=int(query["X-Amz-Expires"]),
            payload_hash=request.headers.get("x-amz-content-sha256", _UNSIGNED),
        )
    except (KeyError, ValueError) as error:
        raise SignatureError(
            "AuthorizationQueryParametersError", f"The presigned URL lacks {error}."
        ) from error


def _check_time(claim: _Claim, now: float) -> None:
    try:
        date = datetime.strptime(claim.timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise SignatureError(
            "AccessDenied", f"The date {claim.timestamp!r} is not valid."
        ) from error
    signed_at = date.timestamp()
    if claim.expires_seconds is not None and now > signed_at + claim.expires_seconds:
        raise SignatureError("AccessDenied", "Request has expired")
    if claim.expires_seconds is None and abs(now - signed_at) > _CLOCK_SKEW_SECONDS:
        raise SignatureError(
            "RequestTimeTooSkewed", "The request's time differs too much from the server's."
        )


def _expected_signature(request: SignedRequest, claim: _Claim, secret: str, scope: str) -> str:
    names = claim.signed_headers.split(";")
    canonical = "\n".join(
        [
            request.method,
            request.path,
            _canonical_query(request.query),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in names),
            "",
            claim.signed_headers,
            claim.payload_hash,
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join([_ALGORITHM, claim.timestamp, scope, digest])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _canonical_query(query: str) -> str:
    pairs = [
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(query, keep_blank_values=True)
        if name != "X-Amz-Signature"
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))
