"""Felis, the API of Alice & Bob: https://felis.alice-bob.com/docs.

A client first creates a job, the emulator's task, then uploads its input, a QIR program, which
queues it. Only the noiseless logical target is emulated; the noise of the other targets is specific
to cat qubits.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from email import message_from_bytes
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qrmi_workflows.emulator.device import RAN_TOO_LONG, Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    fastapi_error,
    read_json_object,
    required_field,
)
from qrmi_workflows.emulator.simulators.qir import OPERATIONS
from qrmi_workflows.emulator.store import Batch, Task

__all__ = ["AliceBobFelis"]

_QUBITS = 40
_MAX_SHOTS = 10_000_000
_EVENTS = {"completed": "SUCCEEDED", "failed": "EXECUTION_FAILED", "cancelled": "CANCELLED"}


class AliceBobFelis(Dialect):
    """The dialect of `alice-bob-felis`."""

    type = "alice-bob-felis"
    simulators = ("qir", "null")
    default_model = "logical-noiseless"
    server_settings = ("cancel_route", "quoted_programs")

    def models(self) -> tuple[str, ...]:
        """Return the only emulated target."""
        return ("logical-noiseless",)

    def new_secrets(self) -> dict[str, str]:
        """Return a user name and a password."""
        return {"username": "emulator", "password": secrets.token_urlsafe(33)}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_AB_FELIS_*` settings; the API key is `user:password` in base64."""
        del qpu
        pair = f"{secrets['username']}:{secrets['password']}"
        return {
            "QRMI_AB_FELIS_BASE_ENDPOINT": url,
            "QRMI_AB_FELIS_API_KEY": base64.b64encode(pair.encode()).decode(),
        }

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers."""
        return [
            ("GET", "/v1/jobs/{id}", self._get_job),
            ("POST", "/v1/jobs/", self._create_job),
            ("POST", "/v1/jobs/{id}/input", self._upload_input),
            ("GET", "/v1/jobs/{id}/output", self._get_output),
            ("GET", "/v1/jobs/{id}/input", self._get_program),
            ("GET", "/v1/jobs/{id}/transpiled", self._get_program),
            ("GET", "/v1/jobs/{id}/metrics", self._get_metrics),
            ("DELETE", "/v1/jobs/{id}", self._cancel_job),
            ("GET", "/v1/targets/", self._list_targets),
            ("GET", "/v1/targets/{target}/availabilities", self._list_availabilities),
            ("GET", "/v1/targets/{target}/health", self._get_target_health),
            ("GET", "/v1/health/", self._get_health),
        ]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render FastAPI's error document."""
        return fastapi_error(refusal)

    def _authorize(self, request: Request) -> None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        expected = f"{self.secrets['username']}:{self.secrets['password']}".encode()
        try:
            presented = base64.b64decode(encoded, validate=True)
        except ValueError:
            presented = b""
        if scheme.lower() != "basic" or not secrets.compare_digest(presented, expected):
            raise RefusalError(401, "The API key is missing or invalid.")

    def _find_target(self, name: str) -> Device:
        for device in self.devices:
            if name == _target_name(device):
                return device
        raise RefusalError(404, f"Target {name} not found.")

    # Jobs

    async def _create_job(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_json_object(request)
        device = self._find_target(required_field(body, "target", str))
        if (
            body.get("inputDataFormat") != "HUMAN_QIR"
            or body.get("outputDataFormat") != "HISTOGRAM"
        ):
            raise RefusalError(
                400, "inputDataFormat must be HUMAN_QIR and outputDataFormat HISTOGRAM."
            )
        shots = required_field(required_field(body, "inputParams", dict), "nbShots", int)
        if not 1 <= shots <= _MAX_SHOTS:
            raise RefusalError(400, f"nbShots must be from 1 to {_MAX_SHOTS}, not {shots}.")
        job = Batch(
            id=str(uuid4()),
            qpu=device.name,
            created=self.fleet.clock.now(),
            details={"params": body["inputParams"], "shots": shots, "cancelled": None},
        )
        self.fleet.store.add_batch(job, [], [])
        return JSONResponse(self._job_document(job))

    def _requested_job(self, request: Request) -> Batch:
        self._authorize(request)
        job = self.fleet.store.batch(request.path_params["id"])
        if job is None or job.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return job

    async def _upload_input(self, request: Request) -> Response:
        job = self._requested_job(request)
        if self.fleet.task(job.id) is not None or job.details["cancelled"]:
            raise RefusalError(409, f"Job {job.id} already has its input or has been cancelled.")
        program = _uploaded_file(request.headers.get("content-type", ""), await request.body())
        if self.fleet.devices[job.qpu].settings.server.quoted_programs:
            program = _unquoted(program)
        task = Task(
            id=job.id,
            qpu=job.qpu,
            program="qir",
            batch=job.id,
            accepted=self.fleet.clock.now(),
        )
        body = json.dumps({"qir": program, "shots": job.details["shots"]})
        self.fleet.store.add_task(task, body)
        self.fleet.devices[job.qpu].submit([task])
        return JSONResponse({})

    def _job_document(self, job: Batch) -> dict[str, Any]:
        iso = self.fleet.clock.iso
        task = self.fleet.task(job.id)
        events = [("CREATED", job.created)]
        if job.details["cancelled"]:
            events.append(("CANCELLED", job.details["cancelled"]))
        if task is not None:
            events.append(("INPUT_READY", task.accepted))
            if task.started:
                events.append(("EXECUTING", task.started))
            if task.finished:
                event = "TIMED_OUT" if task.reason == RAN_TOO_LONG else _EVENTS[task.state]
                events.append((event, task.finished))
        failed = task is not None and task.state == "failed"
        return {
            "id": job.id,
            "target": _target_name(self.fleet.devices[job.qpu]),
            "inputDataFormat": "HUMAN_QIR",
            "outputDataFormat": "HISTOGRAM",
            "inputParams": job.details["params"],
            "userName": self.secrets["username"],
            "userId": self.secrets["username"],
            "organizationName": "emulator",
            "events": [{"type": kind, "createdAt": iso(moment)} for kind, moment in events],
            "errors": [{"content": {"message": task.reason}}] if task and failed else [],
        }

    async def _get_job(self, request: Request) -> Response:
        return JSONResponse(self._job_document(self._requested_job(request)))

    async def _get_output(self, request: Request) -> Response:
        job = self._requested_job(request)
        task = self.fleet.task(job.id)
        if task is None or task.state != "completed":
            raise RefusalError(409, f"Job {job.id} has no output.")
        return PlainTextResponse(self.fleet.store.result(job.id) or "")

    async def _get_program(self, request: Request) -> Response:
        job = self._requested_job(request)
        if self.fleet.task(job.id) is None:
            raise RefusalError(409, f"Job {job.id} has no input.")
        return PlainTextResponse(json.loads(self.fleet.store.request(job.id))["qir"])

    async def _get_metrics(self, request: Request) -> Response:
        task = self.fleet.task(self._requested_job(request).id)
        duration = None
        if task is not None and task.finished:
            seconds = self.fleet.devices[task.qpu].ledger.task(task.id).usage_seconds
            duration = int(seconds * 1e9) if seconds else None
        return JSONResponse({"qpu_duration_ns": None, "simulation_duration_ns": duration})

    async def _cancel_job(self, request: Request) -> Response:
        job = self._requested_job(request)
        self.require_cancel_route(request, job.qpu)
        task = self.fleet.task(job.id)
        if task is None and not job.details["cancelled"]:
            details = {**job.details, "cancelled": self.fleet.clock.now()}
            self.fleet.store.save_batch(
                Batch(id=job.id, qpu=job.qpu, created=job.created, details=details)
            )
        elif task is None or not self.fleet.devices[job.qpu].cancel(job.id):
            raise RefusalError(409, f"Job {job.id} can no longer be cancelled.")
        return Response(status_code=204)

    # Targets

    async def _list_targets(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse([_target_document(device) for device in self.devices])

    async def _list_availabilities(self, request: Request) -> Response:
        self._authorize(request)
        device, now = self._find_target(request.path_params["target"]), self.fleet.clock.now()
        entry = {
            "id": str(uuid4()),
            "target": _target_name(device),
            "enabled": device.availability == "online",
            "message": None,
            "timestamp": self.fleet.clock.iso(now),
            "createdAt": self.fleet.clock.iso(now),
        }
        return JSONResponse([entry])

    async def _get_target_health(self, request: Request) -> Response:
        self._authorize(request)
        is_online = self._find_target(request.path_params["target"]).availability == "online"
        return JSONResponse("OK" if is_online else "OFF")

    async def _get_health(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse("OK")


def _target_name(device: Device) -> str:
    # QRMI 0.26.4 derives the target's name from the resource's: ab_emu_40q_x becomes EMU:40Q:X.
    return device.name.removeprefix("ab_").replace("_", ":", 2).upper()


def _target_document(device: Device) -> dict[str, Any]:
    shots = {
        "required": True,
        "type": "int",
        "default": 1000,
        "constraints": [{"min": 1, "max": _MAX_SHOTS}],
    }
    return {
        "name": _target_name(device),
        "numQubits": _QUBITS,
        "instructions": [{"signature": _signature(name)} for name in OPERATIONS],
        "inputParams": {"nbShots": shots},
    }


def _signature(name: str) -> str:
    base, is_adjoint = name.removesuffix("_adj"), name.endswith("_adj")
    qubits = {"cx": 2, "cz": 2, "swap": 2, "ccx": 3}.get(base, 1)
    arguments = ["%Qubit*"] * qubits
    if base in ("rx", "ry", "rz"):
        arguments = ["double", *arguments]
    elif base.startswith("prepare_"):
        arguments = ["i1", *arguments]
    elif base in ("mx", "my", "mz"):
        arguments = [*arguments, "%Result*"]
    form = "adj" if is_adjoint else "body"
    return f"__quantum__qis__{base}__{form}:void ({', '.join(arguments)})"


def _unquoted(program: str) -> str:
    """Return the program in a JSON string; anything else as it is."""
    with suppress(ValueError):
        return str(json.loads(program)) if program.startswith('"') else program
    return program


def _uploaded_file(content_type: str, body: bytes) -> str:
    """Return the only file of a multipart form."""
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = [part for part in message.walk() if not part.is_multipart()]
    if not message.is_multipart() or len(parts) != 1:
        raise RefusalError(400, "The body must be a multipart form with one file, 'input'.")
    content = parts[0].get_payload(decode=True)
    return content.decode(errors="replace") if isinstance(content, bytes) else ""
