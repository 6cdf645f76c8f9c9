"""The toy vendor's API for the emulator: the routes that QRMI's client calls, and a simulator."""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from collections.abc import Mapping
from email import message_from_bytes
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    fastapi_error,
    read_json_object,
)
from qrmi_workflows.emulator.simulators import Outcome
from qrmi_workflows.emulator.store import Task

_BITS = {"toy-8": 8, "toy-64": 64}
_ACCOUNT = {"userName": "toy", "userId": "toy", "organizationName": "toy"}
_EVENTS = {
    "queued": "INPUT_READY",
    "running": "EXECUTING",
    "completed": "SUCCEEDED",
    "failed": "EXECUTION_FAILED",
    "cancelled": "CANCELLED",
}


class ToyCloud(Dialect):
    """The dialect of `toy-qpu`."""

    type = "toy-qpu"
    simulators = ("toy_emulator", "null")
    default_model = "toy-8"

    def __init__(self) -> None:
        self._created: dict[str, dict[str, Any]] = {}  # jobs that wait for their input

    def models(self) -> tuple[str, ...]:
        return tuple(_BITS)

    def new_secrets(self) -> dict[str, str]:
        return {"key": b64encode(f"toy:{secrets.token_urlsafe()}".encode()).decode()}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        return {"QRMI_AB_FELIS_BASE_ENDPOINT": url, "QRMI_AB_FELIS_API_KEY": secrets["key"]}

    def handlers(self) -> list[tuple[str, str, Handler]]:
        return [
            ("GET", "/v1/jobs/{id}", self._get_job),
            ("POST", "/v1/jobs/", self._create_job),
            ("POST", "/v1/jobs/{id}/input", self._upload_input),
            ("GET", "/v1/jobs/{id}/output", self._get_output),
            ("DELETE", "/v1/jobs/{id}", self._cancel_job),
            ("GET", "/v1/targets/", self._list_targets),
        ]

    def null_outcome(self, task: Task, request: str) -> Outcome:
        return Outcome(**run({"request": request}))

    def render_refusal(self, refusal: RefusalError) -> Response:
        return fastapi_error(refusal)

    async def _create_job(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_json_object(request)
        if body.get("target") not in {_target_name(device.name) for device in self.devices}:
            raise RefusalError(404, f"Target {body.get('target')!r} not found.")
        job = {**body, **_ACCOUNT, "id": str(uuid4()), "events": [], "errors": []}
        self._created[job["id"]] = job
        return JSONResponse(job)

    async def _upload_input(self, request: Request) -> Response:
        self._authorize(request)
        job_id = request.path_params["id"]
        if job_id not in self._created:
            raise RefusalError(409, f"Job {job_id} already has its input.")
        job = self._created.pop(job_id)
        program = _uploaded_text(request.headers["content-type"], await request.body())
        (qpu,) = (name for name in self.qpu_names if _target_name(name) == job["target"])
        now = self.fleet.clock.now()
        task = Task(id=job_id, qpu=qpu, program="toy", accepted=now, details=job)
        work = {"program": program, "shots": job["inputParams"]["nbShots"]}
        self.fleet.store.add_task(task, json.dumps(work))
        self.fleet.devices[qpu].submit([task])
        return JSONResponse({})

    async def _get_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        event = {"type": _EVENTS[task.state], "createdAt": self.fleet.clock.iso(task.accepted)}
        return JSONResponse({**task.details, "events": [event]})

    async def _get_output(self, request: Request) -> Response:
        task = self._requested_task(request)
        return PlainTextResponse(self.fleet.store.result(task.id) or "")

    async def _cancel_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        self.fleet.devices[task.qpu].cancel(task.id)
        return Response(status_code=204)

    async def _list_targets(self, request: Request) -> Response:
        self._authorize(request)
        targets = [
            {
                "name": _target_name(device.name),
                "numQubits": _BITS[device.settings.model],
                "instructions": [],
                "inputParams": {},
            }
            for device in self.devices
        ]
        return JSONResponse(targets)

    def _authorize(self, request: Request) -> None:
        expected = f"Basic {self.secrets['key']}"
        if not secrets.compare_digest(request.headers.get("authorization", ""), expected):
            raise RefusalError(401, "The API key is missing or invalid.")

    def _requested_task(self, request: Request) -> Task:
        self._authorize(request)
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return task


def _target_name(qpu: str) -> str:
    # QRMI 0.26.4 calls the QPU `toy_1` TOY:1.
    return qpu.replace("_", ":", 2).upper()


def _uploaded_text(content_type: str, body: bytes) -> str:
    form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    *_, file = form.walk()
    return bytes(file.get_payload(decode=True)).decode()


def warm() -> None:
    """Prepare for the first simulation; the toy's needs nothing."""


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Simulate a task: every shot measures what was prepared."""
    request = json.loads(work["request"])
    bits = request["program"].removeprefix("TOY ")
    return {"result": f"{bits},{request['shots']}\n", "logs": ""}
