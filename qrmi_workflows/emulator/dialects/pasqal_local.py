"""Pasqal Local: the warden that stands before a QPU on the site, github.com/pasqal-io/warden.

Every caller is known by its MUNGE credential. The warden's root opens and revokes sessions for
users (here also the user who runs the emulator, who is its root); a job belongs to a session and
is seen by the session's owner alone. Each QPU has a warden of its own.

QRMI also asks for `/jobs/{id}/cancel` and `/jobs/{id}/logs`, which the public warden lacks.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    json_object,
)
from qrmi_workflows.emulator.dialects.pasqal import PULSER_DEVICES, STATUS
from qrmi_workflows.emulator.munge import MungeError, decode_uid
from qrmi_workflows.emulator.store import Session, Task

__all__ = ["PasqalLocal"]

_UNLIMITED = 10 * 365 * 24 * 3600


class PasqalLocal(Dialect):
    """The dialect `pasqal-local`."""

    type = "pasqal-local"
    simulators = ("pulser", "emu-mps", "emu-sv", "null")
    default_model = "AnalogDevice"

    def models(self) -> tuple[str, ...]:
        """Return the names of Pulser's devices."""
        return PULSER_DEVICES

    def new_secrets(self) -> dict[str, str]:
        """Return nothing: MUNGE says who calls."""
        return {}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return `QRMI_WARDEN_URL`."""
        del secrets
        return {"QRMI_WARDEN_URL": f"{url}/{qpu}"}

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API."""
        return [
            ("GET", "/{qpu}/jobs/{id}", self._get_job),
            ("POST", "/{qpu}/jobs", self._create_job),
            ("GET", "/{qpu}/jobs", self._list_jobs),
            ("POST", "/{qpu}/jobs/{id}/cancel", self._cancel_job),
            ("GET", "/{qpu}/jobs/{id}/logs", self._get_logs),
            ("POST", "/{qpu}/sessions", self._create_session),
            ("DELETE", "/{qpu}/sessions/{id}", self._revoke_session),
            ("GET", "/{qpu}/accessible", self._get_accessible),
            ("GET", "/{qpu}/qpu/specs", self._get_specs),
        ]

    def refuse(self, refusal: RefusalError) -> Response:
        """Render FastAPI's error document; it says 422 where a body is malformed."""
        status = 422 if refusal.status == 400 else refusal.status
        detail: object = refusal.message
        if status == 422:
            detail = [{"type": "value_error", "loc": ["body"], "msg": refusal.message}]
        return JSONResponse({"detail": detail}, status_code=status)

    async def _identity(self, request: Request) -> int:
        credential = request.headers.get("x-munge-cred")
        if not credential:
            raise RefusalError(401, "Missing MUNGE credential")
        try:
            return await asyncio.to_thread(decode_uid, credential)
        except MungeError as error:
            raise RefusalError(401, str(error)) from error

    async def _require_root(self, request: Request) -> None:
        if await self._identity(request) not in (0, os.getuid()):
            raise RefusalError(403, "Endpoint restricted to root user.")

    def _device(self, request: Request) -> Device:
        return self.device(request.path_params["qpu"])

    # Sessions

    async def _create_session(self, request: Request) -> Response:
        device = self._device(request)
        await self._require_root(request)
        body = await json_object(request)
        for field in ("user_id", "slurm_job_id"):
            if not isinstance(body.get(field), str):
                raise RefusalError(400, f"{field}: Input should be a valid string")
        session = Session(
            id=str(uuid4()),
            qpu=device.name,
            mode="shared",
            max_ttl=_UNLIMITED,
            created=self.fleet.clock.now(),
            owner=body["user_id"],
        )
        device.sessions.open(session)
        return JSONResponse(self._session_document(session))

    async def _revoke_session(self, request: Request) -> Response:
        device = self._device(request)
        await self._require_root(request)
        session = self.fleet.session(request.path_params["id"])
        if session is None or session.qpu != device.name:
            raise RefusalError(404, "Session not found.")
        device.sessions.stop_accepting(session.id)
        return JSONResponse(self._session_document(session))

    def _session_document(self, session: Session) -> dict[str, Any]:
        iso = self.fleet.clock.iso
        revoked = None if session.accepting else iso(session.closed or self.fleet.clock.now())
        return {
            "id": session.id,
            "user_id": session.owner,
            "created_at": iso(session.created),
            "revoked_at": revoked,
        }

    async def _owned_session(self, request: Request, device: Device) -> Session:
        uid = await self._identity(request)
        session_id = request.headers.get("x-warden-session")
        if session_id is None:
            raise RefusalError(403, "Missing 'X-Warden-Session' header.")
        session = self.fleet.session(session_id)
        if session is None or session.qpu != device.name:
            raise RefusalError(403, "Invalid session.")
        if not session.accepting:
            raise RefusalError(403, "Session has been revoked.")
        if session.owner != str(uid):
            raise RefusalError(403, "Session belongs to another user.")
        return session

    # Jobs

    async def _create_job(self, request: Request) -> Response:
        device = self._device(request)
        session = await self._owned_session(request, device)
        body = await json_object(request)
        sequence, shots = body.get("sequence"), body.get("shots")
        if not isinstance(sequence, str):
            raise RefusalError(400, "sequence: Input should be a valid string")
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
            raise RefusalError(400, "shots: Input should be a positive integer")
        task = Task(
            id=str(self.fleet.store.next_number()),
            qpu=device.name,
            program="sequence",
            session=session.id,
            accepted=self.fleet.clock.now(),
            details={"owner": session.owner},
        )
        self.fleet.store.add_task(task, json.dumps({"sequence": sequence, "runs": shots}))
        device.submit([task])
        return JSONResponse(self._document(task))

    async def _task(self, request: Request) -> Task:
        device, uid = self._device(request), await self._identity(request)
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.qpu != device.name or task.details["owner"] != str(uid):
            raise RefusalError(404, "Job not found")
        return task

    def _document(self, task: Task) -> dict[str, Any]:
        results = None
        if task.state == "completed":
            counts = json.loads(self.fleet.store.result(task.id) or "{}")
            results = json.dumps({"counter": counts})
        return {
            "id": int(task.id),
            "user_id": task.details["owner"],
            "created_at": self.fleet.clock.iso(task.accepted),
            "status": STATUS[task.state],
            "results": results,
        }

    async def _get_job(self, request: Request) -> Response:
        return JSONResponse(self._document(await self._task(request)))

    async def _list_jobs(self, request: Request) -> Response:
        device, uid = self._device(request), await self._identity(request)
        tasks = self.fleet.store.find_tasks(qpu=device.name)
        owned = [task for task in tasks if task.details["owner"] == str(uid)]
        return JSONResponse([self._document(self.fleet.live(task)) for task in owned])

    async def _cancel_job(self, request: Request) -> Response:
        task = await self._task(request)
        self.fleet.devices[task.qpu].cancel(task.id)
        return JSONResponse(self._document(task))

    async def _get_logs(self, request: Request) -> Response:
        task = await self._task(request)
        return JSONResponse({"logs": self.fleet.store.logs(task.id)})

    # The QPU

    async def _get_accessible(self, request: Request) -> Response:
        online = self._device(request).availability == "online"
        message = "" if online else f"The QPU is {self._device(request).availability}."
        return JSONResponse({"is_accessible": online, "message": message})

    async def _get_specs(self, request: Request) -> Response:
        return JSONResponse({"specs": await self.fleet.specs(self._device(request))})
