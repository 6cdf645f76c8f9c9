"""Pasqal Local: the warden in front of an on-site QPU, https://github.com/pasqal-io/warden.

Callers identify themselves with MUNGE credentials. Only root can open and revoke sessions for
users. A job, the emulator's task, belongs to a session and is visible only to the session's owner.
Each QPU has its own warden.

QRMI 0.26.4 also requests `/jobs/{id}/cancel` and `/jobs/{id}/logs`, which the public warden (0.1.0)
lacks. The QPU that comes with it for trials writes results that are not JSON (`json_results`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    MAX_INTEGER,
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    fastapi_error,
    read_json_object,
)
from qrmi_workflows.emulator.dialects.pasqal import MAX_RUNS, PULSER_DEVICES, STATUS
from qrmi_workflows.emulator.munge import MungeError, decode_uid
from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.store import Session, Task

__all__ = ["PasqalLocal"]

_TEN_YEARS = 10 * 365 * 24 * 3600  # the warden's sessions have no TTL


class PasqalLocal(Dialect):
    """The dialect of `pasqal-local`."""

    type = "pasqal-local"
    simulators = ("pulser", "emu-mps", "emu-sv", "null")
    default_model = "AnalogDevice"
    server_settings = ("cancel_route", "json_results", "log_route", "root_opens_sessions")

    def models(self) -> tuple[str, ...]:
        """Return the names of Pulser's devices."""
        return PULSER_DEVICES

    def new_secrets(self) -> dict[str, str]:
        """Return nothing, because callers identify themselves with MUNGE."""
        return {}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the setting `QRMI_WARDEN_URL`."""
        del secrets
        return {"QRMI_WARDEN_URL": f"{url}/{qpu}"}

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers."""
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

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render FastAPI's error document."""
        return fastapi_error(refusal)

    async def _caller_uid(self, request: Request) -> int:
        credential = request.headers.get("x-munge-cred")
        if not credential:
            raise RefusalError(401, "Missing MUNGE credential")
        try:
            return await asyncio.to_thread(decode_uid, credential)
        except MungeError as error:
            raise RefusalError(401, str(error)) from error

    async def _require_root(self, request: Request, device: Device) -> None:
        uid = await self._caller_uid(request)
        if uid != 0 and device.settings.server.root_opens_sessions:
            raise RefusalError(403, "Endpoint restricted to root user.")

    def _requested_device(self, request: Request) -> Device:
        return self.device(request.path_params["qpu"])

    async def read_request(self, task: Task, request: str) -> str:
        """Check the runs of a task that starts: the warden passes on any number, the QPU does not.

        Raises:
            SimulationError: There are more than the device allows.
        """
        most = MAX_RUNS.get(self.fleet.devices[task.qpu].settings.model)
        runs = json.loads(request)["runs"]
        if most is not None and runs > most:
            raise SimulationError(f"{runs} runs; the device allows at most {most}")
        return request

    # Sessions

    async def _create_session(self, request: Request) -> Response:
        device = self._requested_device(request)
        await self._require_root(request, device)
        body = await read_json_object(request)
        for field in ("user_id", "slurm_job_id"):
            if not isinstance(body.get(field), str):
                raise RefusalError(400, f"{field}: Input should be a valid string")
        session = Session(
            id=str(uuid4()),
            qpu=device.name,
            mode="shared",
            max_ttl=_TEN_YEARS,
            created=self.fleet.clock.now(),
            owner=body["user_id"],
        )
        device.sessions.open(session)
        return JSONResponse(self._session_document(session))

    async def _revoke_session(self, request: Request) -> Response:
        device = self._requested_device(request)
        await self._require_root(request, device)
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
        uid = await self._caller_uid(request)
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
        device = self._requested_device(request)
        session = await self._owned_session(request, device)
        body = await read_json_object(request)
        sequence, shots = body.get("sequence"), body.get("shots")
        if not isinstance(sequence, str):
            raise RefusalError(400, "sequence: Input should be a valid string")
        if not isinstance(shots, int) or isinstance(shots, bool) or not 1 <= shots <= MAX_INTEGER:
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
        return JSONResponse(self._job_document(task))

    async def _requested_task(self, request: Request) -> Task:
        device, uid = self._requested_device(request), await self._caller_uid(request)
        if not request.path_params["id"].isdecimal():
            raise RefusalError(422, "id: Input should be a valid integer")
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.qpu != device.name or task.details["owner"] != str(uid):
            raise RefusalError(404, "Job not found")
        return task

    def _job_document(self, task: Task) -> dict[str, Any]:
        results = None
        if task.state == "completed":
            counts = json.loads(self.fleet.store.result(task.id) or "{}")
            is_json = self.fleet.devices[task.qpu].settings.server.json_results
            results = (json.dumps if is_json else repr)({"counter": counts})
        return {
            "id": int(task.id),
            "user_id": task.details["owner"],
            "created_at": self.fleet.clock.iso(task.accepted),
            "status": STATUS[task.state],
            "results": results,
        }

    async def _get_job(self, request: Request) -> Response:
        return JSONResponse(self._job_document(await self._requested_task(request)))

    async def _list_jobs(self, request: Request) -> Response:
        device, uid = self._requested_device(request), await self._caller_uid(request)
        tasks = self.fleet.store.find_tasks(qpu=device.name)
        owned = [task for task in tasks if task.details["owner"] == str(uid)]
        return JSONResponse([self._job_document(self.fleet.latest(task)) for task in owned])

    async def _cancel_job(self, request: Request) -> Response:
        task = await self._requested_task(request)
        self.require_cancel_route(request, task.qpu)
        self.fleet.devices[task.qpu].cancel(task.id)
        return JSONResponse(self._job_document(task))

    async def _get_logs(self, request: Request) -> Response:
        if not self._requested_device(request).settings.server.log_route:
            raise RefusalError(404, "Not Found")  # Starlette's own words for a route it lacks
        task = await self._requested_task(request)
        return JSONResponse({"logs": self.fleet.store.logs(task.id)})

    # The QPU

    async def _get_accessible(self, request: Request) -> Response:
        availability = self._requested_device(request).availability
        is_online = availability == "online"
        message = "" if is_online else f"The QPU is {availability}."
        return JSONResponse({"is_accessible": is_online, "message": message})

    async def _get_specs(self, request: Request) -> Response:
        return JSONResponse({"specs": await self.fleet.specs(self._requested_device(request))})
