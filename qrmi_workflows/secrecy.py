"""Credentials do not leave by what others say: a vendor's error may echo what it was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

__all__ = ["conceal", "secrets_of"]

_CONCEALED = "…"
_LEAST = 6  # a shorter value is a number or a word, and would blot out half of a message
_OPEN = re.compile(r"(ENDPOINT|URL|BUCKET|REGION|MODE|TTL|SECONDS|CODES)$")
_ANYWHERE = re.compile(
    r"(?<=Bearer )\S+|(?<=Basic )\S+|\beyJ[\w-]+\.[\w-]+\.[\w-]+"
    r"|(?<=X-Amz-Signature=)[^&\s\"']+|(?<=X-Amz-Credential=)[^&\s\"']+"
)


def secrets_of(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the credentials among a QPU's settings: all but its addresses and its limits."""
    return frozenset(
        value
        for name, value in environment.items()
        if len(value) >= _LEAST and not _OPEN.search(name)
    )


def conceal(text: str, secrets: Iterable[str] = ()) -> str:
    """Blot out credentials: those given, as they are or in a URL, and whatever looks like one.

    Args:
        text: What a vendor or its client said.
        secrets: The credentials that it was sent.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _CONCEALED).replace(quote(secret, safe=""), _CONCEALED)
    return _ANYWHERE.sub(_CONCEALED, text)
