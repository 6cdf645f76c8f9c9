"""What IBM's two APIs share: IAM, where an API key is exchanged for an access token."""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.dialects.base import Dialect, JSONResponse
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["exchange_key", "new_api_key"]

_GRANT = "urn:ibm:params:oauth:grant-type:apikey"


def new_api_key() -> str:
    """Return a random IBM Cloud API key."""
    return secrets.token_urlsafe(33)


async def exchange_key(request: Request, dialect: Dialect) -> Response:
    """Answer IAM's `POST /identity/token`: an API key for an access token."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    grant, key = form.get("grant_type", [""])[0], form.get("apikey", [""])[0]
    if grant != _GRANT:
        return _iam_error("BXNIM0137E", f"Property missing or empty: grant_type = {_GRANT}")
    if not secrets.compare_digest(key.encode(), dialect.secrets["apikey"].encode()):
        return _iam_error("BXNIM0415E", "Provided API key could not be found.")
    now = int(dialect.fleet.clock.now())
    return JSONResponse(
        {
            "access_token": dialect.fleet.tokens.issue(dialect.type),
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": LIFETIME_SECONDS,
            "expiration": now + LIFETIME_SECONDS,
            "scope": "ibm openid",
        }
    )


def _iam_error(code: str, message: str) -> Response:
    return JSONResponse({"errorCode": code, "errorMessage": message}, status_code=400)
