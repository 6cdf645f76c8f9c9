"""Access tokens: JSON Web Tokens (RFC 7519) signed with HMAC-SHA256.

The server stores no tokens: each carries its claims and is checked by its signature, so it stays
valid when the emulator restarts. Tokens must be real JWTs because clients read the expiry in them.
"""

from __future__ import annotations

import jwt

from qrmi_workflows.emulator.clock import Clock

__all__ = ["TokenIssuer"]

LIFETIME_SECONDS = 3600
_ALGORITHM = "HS256"


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
        # Clients poll with the same token; checking it each time would slow every request down.
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
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

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
        """Return when a token expires, by the emulator's clock; 0 if it is invalid."""
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=audience,
                # PyJWT compares times with the machine's clock (read in 2.15), and a fault may have
                # set the emulator's clock wrong: `is_valid` checks the expiry instead.
                options={"require": ["exp", "gen"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return 0.0
        return float(claims["exp"]) if claims["gen"] == self.generation else 0.0
