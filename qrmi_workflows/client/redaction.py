"""Redact credentials, because a vendor's message may echo those that it was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

__all__ = ["redact", "secrets_of"]

_REDACTED = "…"
_SHORTEST = 6  # a shorter value is a number or a word: redacting it would garble the message
_PUBLIC = re.compile(
    r"(ENDPOINT|URL|BUCKET|REGION|MODE|TTL|SECONDS|CODES|JOB_ID|JOB_UID|EMULATED|RESOURCE_ID)$"
)
_LOOKS_SECRET = re.compile(
    r"(?<=Bearer )\S+|(?<=Basic )\S+|\beyJ[\w-]+\.[\w-]+\.[\w-]+"
    r"|(?<=X-Amz-Signature=)[^&\s\"']+|(?<=X-Amz-Credential=)[^&\s\"']+"
)


def secrets_of(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the credentials among a QPU's settings: not addresses, limits or the job's ids."""
    return frozenset(
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST and not _PUBLIC.search(name)
    )


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Redact credentials, plain or URL-quoted, and anything that looks like one.

    Args:
        text: A message of a vendor or its client.
        secrets: The credentials that the vendor was sent.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _REDACTED).replace(quote(secret, safe=""), _REDACTED)
    return _LOOKS_SECRET.sub(_REDACTED, text)
