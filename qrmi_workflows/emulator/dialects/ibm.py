"""The common part of IBM's two APIs: accounts, and IAM, which exchanges API keys for tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import ClassVar
from urllib.parse import parse_qs
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.backends import backend_document, fake_backends
from qrmi_workflows.emulator.dialects.base import Dialect, JSONResponse, RefusalError
from qrmi_workflows.emulator.simulators import CODE_PREFIX, Outcome, SimulationError
from qrmi_workflows.emulator.simulators.ibm_results import is_encoded, stamp_spans
from qrmi_workflows.emulator.simulators.null import (
    count_pubs,
    null_outcome,
    plain_null_outcome,
)
from qrmi_workflows.emulator.store import Task
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["IBMDialect", "reason_code"]

TOO_MANY_SHOTS = "Too many shots"

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

    async def read_request(self, task: Task, request: str) -> str:
        """Check the shots of a job that starts, and return its input."""
        self.check_shots(task, request)
        return request

    def null_outcome(self, task: Task, request: str) -> Outcome:
        """Return a fixed result in the encoding that the job asks for."""
        server = self.fleet.devices[task.qpu].settings.server
        params = None
        with suppress(ValueError, RecursionError):
            params = json.loads(request)
        if is_encoded(params, asdict(server)):
            return null_outcome(task.program, request)
        return plain_null_outcome(task.program, request)

    def stamp_result(self, task: Task, result: str) -> str:
        """Return a result whose execution spans end now, and are as long as the execution was."""
        now = self.fleet.clock.now()
        seconds = self.fleet.devices[task.qpu].ledger.task(task.id).qpu_seconds
        return stamp_spans(result, now - seconds, now)

    def count_pubs(self, request: str) -> int:
        """Return how many PUBs a job has."""
        return count_pubs(request)

    def check_shots(self, task: Task, request: str) -> None:
        """Refuse more shots than the backend allows, as a job that runs is refused.

        Raises:
            SimulationError: A PUB has too many shots.
        """
        settings = self.fleet.devices[task.qpu].settings
        limit = backend_document(settings.model, "conf").get("max_shots")
        if task.program != "sampler" or limit is None or not settings.server.limits_shots:
            return
        most = max(_requested_shots(request), default=0)
        if most > limit:
            raise SimulationError(f"{TOO_MANY_SHOTS} given ({most} > {limit}).")

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


def reason_code(task: Task) -> int:
    """Return the code of a failed job, from IBM's registry of error codes where it is known."""
    reason = str(task.reason)
    if reason.startswith(TOO_MANY_SHOTS):
        return 6000
    _, _, code = reason.rpartition(CODE_PREFIX)
    return int(code) if code.isdecimal() else 1500


def _requested_shots(request: str) -> Iterator[int]:
    try:
        params = json.loads(request)
        options = params.get("options") or {}
        by_default = params.get("shots") or options.get("default_shots")
        own = [pub[2] if isinstance(pub, list) and len(pub) > 2 else 0 for pub in params["pubs"]]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return  # the simulator says what is wrong
    for shots in own:
        if isinstance(chosen := shots or by_default, int):
            yield chosen


def _iam_error(code: str, message: str) -> Response:
    return JSONResponse({"errorCode": code, "errorMessage": message}, status_code=400)
