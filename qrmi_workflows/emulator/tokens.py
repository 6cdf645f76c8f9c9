"""Access tokens: JSON Web Tokens (RFC 7519) signed with HMAC-SHA256.

The signature holds all that is needed to check one, so that a token outlives a restart of the
emulator. Vendors' clients read the expiry out of a token: it must be a real JWT.
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
    """Issues and checks tokens.

    Args:
        key: The signing key.
        clock: What expiry is measured with.
        generation: Tokens of other generations have expired.
    """

    def __init__(self, key: bytes, clock: Clock, generation: int = 0) -> None:
        self._key = key
        self._clock = clock
        self.generation = generation
        self._known: dict[tuple[str, str], float] = {}

    def issue(self, audience: str, lifetime_seconds: int = LIFETIME_SECONDS) -> str:
        """Return a new token for one vendor's API."""
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
        """Make every token that was issued until now expire."""
        self.generation += 1
        self._known.clear()

    def accepts(self, token: str, audience: str) -> bool:
        """Return whether a token is ours, for this audience, and has not expired."""
        expiry = self._known.get((token, audience))
        if expiry is None:
            expiry = self._verify(token, audience)
            if len(self._known) > 1000:
                self._known.clear()
            self._known[token, audience] = expiry
        return expiry > self._clock.now()

    def _verify(self, token: str, audience: str) -> float:
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
