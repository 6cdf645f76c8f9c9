"""Access tokens: JSON Web Tokens (RFC 7519) signed with HMAC-SHA256.

The server stores no tokens: each carries its claims and is checked by its signature, so it stays
valid when the emulator restarts. Tokens must be real JWTs because clients read the expiry in them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from qrmi_workflows.emulator.clock import Clock

__all__ = ["TokenIssuer"]

LIFETIME_SECONDS = 3600


class TokenIssuer:
    """Issue and check tokens.

    Args:
        key: The signing key.
        clock: The clock that decides when a token expires.
        generation: The number of times that all tokens have been expired. A token is only valid
            in the generation that issued it.
    """

    def __init__(self, key: bytes, clock: Clock, generation: int = 0) -> None:
        self._key = key
        self._clock = clock
        self.generation = generation
        self._expiries: dict[tuple[str, str], float] = {}

    def issue(self, audience: str, lifetime_seconds: int = LIFETIME_SECONDS) -> str:
        """Return a new token for one audience, such as one vendor's API."""
        now = int(self._clock.now())
        claims = {
            "aud": audience,
            "iat": now,
            "exp": now + lifetime_seconds,
            "gen": self.generation,
        }
        head = _encode({"alg": "HS256", "typ": "JWT"}) + "." + _encode(claims)
        return f"{head}.{self._sign(head)}"

    def expire_all(self) -> None:
        """Expire every token issued so far."""
        self.generation += 1
        self._expiries.clear()

    def is_valid(self, token: str, audience: str) -> bool:
        """Return whether this issuer signed a token for this audience and it has not expired."""
        expiry = self._expiries.get((token, audience))
        if expiry is None:
            expiry = self._verified_expiry(token, audience)
            if len(self._expiries) > 1000:
                self._expiries.clear()
            self._expiries[token, audience] = expiry
        return expiry > self._clock.now()

    def _verified_expiry(self, token: str, audience: str) -> float:
        """Return when a token expires; 0 if it is not valid at all."""
        head, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(head).encode()):
            return 0.0
        claims: dict[str, Any] = json.loads(_decode(head.partition(".")[2]))
        if claims["aud"] != audience or claims["gen"] != self.generation:
            return 0.0
        return float(claims["exp"])

    def _sign(self, head: str) -> str:
        return _base64(hmac.digest(self._key, head.encode(), hashlib.sha256))


def _encode(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
