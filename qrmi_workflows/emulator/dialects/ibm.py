"""The common part of IBM's two APIs: accounts, and IAM, which exchanges API keys for tokens."""

from __future__ import annotations

import secrets
from typing import ClassVar
from urllib.parse import parse_qs
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.backends import fake_backends
from qrmi_workflows.emulator.dialects.base import Dialect, JSONResponse, RefusalError
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["IBMDialect"]

_GRANT = "urn:ibm:params:oauth:grant-type:apikey"


class IBMDialect(Dialect):
    """An API behind IBM Cloud IAM, with qiskit-ibm-runtime's fake backends as models."""

    simulators: ClassVar[tuple[str, ...]] = ("aer", "null")
    default_model: ClassVar[str] = "fez"

    def models(self) -> tuple[str, ...]:
        """Return the names of qiskit-ibm-runtime's fake backends."""
        return fake_backends()

    def new_secrets(self) -> dict[str, str]:
        """Return an API key and the CRN of a service instance."""
        instance = f"a/{secrets.token_hex(16)}:{uuid4()}"
        return {
            "apikey": secrets.token_urlsafe(33),
            "crn": f"crn:v1:bluemix:public:quantum-computing:us-east:{instance}::",
        }

    def _authorize(self, request: Request) -> None:
        if not self.fleet.tokens.is_valid(self.bearer(request), self.type):
            raise RefusalError(401, "The access token is missing, invalid or expired.")
        if request.headers.get("service-crn") != self.secrets["crn"]:
            raise RefusalError(
                403, "The Service-CRN header does not name an instance of this account."
            )

    async def _issue_token(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        grant, key = form.get("grant_type", [""])[0], form.get("apikey", [""])[0]
        if grant != _GRANT:
            return _iam_error("BXNIM0137E", f"Property missing or empty: grant_type = {_GRANT}")
        if not secrets.compare_digest(key.encode(), self.secrets["apikey"].encode()):
            return _iam_error("BXNIM0415E", "Provided API key could not be found.")
        now = int(self.fleet.clock.now())
        return JSONResponse(
            {
                "access_token": self.fleet.tokens.issue(self.type),
                "refresh_token": "not_supported",
                "token_type": "Bearer",
                "expires_in": LIFETIME_SECONDS,
                "expiration": now + LIFETIME_SECONDS,
                "scope": "ibm openid",
            }
        )


def _iam_error(code: str, message: str) -> Response:
    return JSONResponse({"errorCode": code, "errorMessage": message}, status_code=400)
