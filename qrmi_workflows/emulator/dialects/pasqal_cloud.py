"""Pasqal Cloud: https://docs.pasqal.com/cloud/api. Batches of jobs that share one sequence.

QRMI submits batches of one job; Pasqal's own SDK also parametrised sequences, several jobs with
their variables, and open batches.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    json_object,
    wanted,
)
from qrmi_workflows.emulator.store import Batch, Task
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["PasqalCloud"]

_STATUS = {
    "queued": "PENDING",
    "running": "RUNNING",
    "completed": "DONE",
    "failed": "ERROR",
    "cancelled": "CANCELED",
}
_API = "/core-fast/api"


class PasqalCloud(Dialect):
    """The dialect `pasqal-cloud`."""

    type = "pasqal-cloud"
    simulators = ("pulser", "null")
    default_model = "AnalogDevice"
    names = ("FRESNEL", "FRESNEL_CAN1", "EMU_MPS", "EMU_FREE", "EMU_FRESNEL")

    def models(self) -> tuple[str, ...]:
        """Return the names of Pulser's devices."""
        return ("AnalogDevice", "DigitalAnalogDevice", "MockDevice")

    def new_secrets(self) -> dict[str, str]:
        """Return a service account and a project."""
        return {
            "client_id": secrets.token_urlsafe(24),
            "client_secret": secrets.token_urlsafe(48),
            "project_id": str(uuid4()),
        }

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return `QRMI_PASQAL_CLOUD_*`."""
        del qpu
        return {
            "QRMI_PASQAL_CLOUD_BASE_URL": url,
            "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT": f"{url}/oauth/token",
            "QRMI_PASQAL_CLOUD_PROJECT_ID": secrets["project_id"],
            "QRMI_PASQAL_CLOUD_CLIENT_ID": secrets["client_id"],
            "QRMI_PASQAL_CLOUD_CLIENT_SECRET": secrets["client_secret"],
        }

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API."""
        api = _API
        return [
            ("GET", f"{api}/v2/jobs/{{id}}", self._get_job),
            ("GET", f"{api}/v2/batches/{{id}}", self._get_batch),
            ("POST", f"{api}/v1/batches", self._create_batch),
            ("GET", f"{api}/v1/batches/{{id}}/full_results", self._get_results),
            ("PATCH", f"{api}/v2/batches/{{id}}/cancel", self._cancel_batch),
            ("POST", "/oauth/token", self._issue_token),
            ("GET", f"{api}/v1/devices", self._list_devices),
            ("GET", f"{api}/v1/devices/public-specs", self._list_specs),
            ("GET", f"{api}/v1/devices/specs/{{name}}", self._get_specs),
        ]

    def refuse(self, refusal: RefusalError) -> Response:
        """Render Pasqal's JSend document."""
        document = {
            "status": "error" if refusal.status >= 500 else "fail",
            "code": str(refusal.code or refusal.status),
            "message": refusal.message,
            "data": {"description": refusal.message},
        }
        return JSONResponse(document, status_code=refusal.status)

    def _authorize(self, request: Request) -> None:
        if not self.fleet.tokens.accepts(self.bearer(request), self.type):
            raise RefusalError(401, "The access token is missing, invalid or expired.")

    async def _issue_token(self, request: Request) -> Response:
        body = (await request.body()).decode(errors="replace")
        form = {key: values[0] for key, values in parse_qs(body).items()}
        expected = (self.secrets["client_id"], self.secrets["client_secret"])
        given = (form.get("client_id", ""), form.get("client_secret", ""))
        if form.get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "allowed is client_credentials")
        if not secrets.compare_digest("\n".join(given).encode(), "\n".join(expected).encode()):
            return _oauth_error(401, "access_denied", "Unauthorized")
        token = self.fleet.tokens.issue(self.type)
        return JSONResponse(
            {"access_token": token, "expires_in": LIFETIME_SECONDS, "token_type": "Bearer"}
        )

    # Batches and jobs

    async def _create_batch(self, request: Request) -> Response:
        self._authorize(request)
        body = await json_object(request)
        if body.get("project_id") != self.secrets["project_id"]:
            raise RefusalError(403, f"No access to the project {body.get('project_id')!r}.")
        device = self.device(wanted(body, "device_type", str))
        sequence = _sequence(wanted(body, "sequence_builder", str))
        jobs = wanted(body, "jobs", list)
        if not jobs:
            raise RefusalError(400, "The field 'jobs' must hold at least one job.")
        batch = Batch(id=str(uuid4()), qpu=device.name, created=self.fleet.clock.now(), details={})
        tasks, requests = [], []
        for job in jobs:
            document = _job_request(job, sequence)
            tasks.append(self._new_task(batch, document))
            requests.append(json.dumps(document))
        self.fleet.store.add_batch(batch, tasks, requests)
        device.submit(tasks)
        return _success(self._batch_document(batch, tasks), status_code=201)

    def _new_task(self, batch: Batch, document: Mapping[str, Any]) -> Task:
        return Task(
            id=str(uuid4()),
            qpu=batch.qpu,
            program="sequence",
            batch=batch.id,
            accepted=batch.created,
            details={"runs": document["runs"], "variables": document["variables"]},
        )

    def _batch(self, request: Request) -> tuple[Batch, list[Task]]:
        self._authorize(request)
        batch_id = request.path_params["id"]
        batch = self.fleet.store.batch(batch_id)
        if batch is None:
            raise RefusalError(404, f"Batch {batch_id} not found.")
        tasks = self.fleet.store.find_tasks(batch=batch_id)
        return batch, [self.fleet.live(task) for task in tasks]

    async def _get_batch(self, request: Request) -> Response:
        return _success(self._batch_document(*self._batch(request)))

    async def _get_job(self, request: Request) -> Response:
        self._authorize(request)
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.batch is None:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return _success(self._job_document(task))

    async def _get_results(self, request: Request) -> Response:
        _, tasks = self._batch(request)
        results = {}
        for task in tasks:
            if task.state == "completed":
                counter = json.loads(self.fleet.store.result(task.id) or "{}")
                results[task.id] = {"counter": counter}
        return _success(results)

    async def _cancel_batch(self, request: Request) -> Response:
        batch, tasks = self._batch(request)
        for task in tasks:
            self.fleet.devices[batch.qpu].cancel(task.id)
        return _success(self._batch_document(*self._batch(request)))

    def _batch_document(self, batch: Batch, tasks: list[Task]) -> dict[str, Any]:
        iso = self.fleet.clock.iso
        states = [task.state for task in tasks]
        status = _batch_status(states)
        started = [task.started for task in tasks if task.started]
        ended = [task.finished for task in tasks if task.finished]
        return {
            "id": batch.id,
            "project_id": self.secrets["project_id"],
            "user_id": "emulator",
            "status": status,
            "device_type": batch.qpu,
            "created_at": iso(batch.created),
            "updated_at": iso(max([batch.created, *started, *ended])),
            "start_datetime": iso(min(started, default=None)),
            "end_datetime": iso(max(ended)) if status in ("DONE", "CANCELED", "ERROR") else None,
            "jobs_count": len(tasks),
            "job_ids": [task.id for task in tasks],
            "jobs": [self._job_document(task) for task in tasks],
        }

    def _job_document(self, task: Task) -> dict[str, Any]:
        iso = self.fleet.clock.iso
        return {
            "id": task.id,
            "batch_id": task.batch,
            "project_id": self.secrets["project_id"],
            "status": _STATUS[task.state],
            "runs": task.details["runs"],
            "variables": task.details.get("variables"),
            "created_at": iso(task.accepted),
            "updated_at": iso(task.finished or task.started or task.accepted),
            "start_datetime": iso(task.started),
            "end_datetime": iso(task.finished),
            "errors": [task.reason] if task.state == "failed" else None,
        }

    # Devices

    async def _list_devices(self, request: Request) -> Response:
        name = request.query_params.get("device_type")
        devices = [device for device in self.devices if name in (None, device.name)]
        return _success(
            [
                {
                    "device_type": device.name,
                    "status": "UP" if device.availability == "online" else "DOWN",
                    "availability": "INACTIVE" if device.availability == "offline" else "ACTIVE",
                }
                for device in devices
            ]
        )

    async def _list_specs(self, request: Request) -> Response:
        del request
        return _success(
            [
                {"device_type": device.name, "specs": await self.fleet.specs(device)}
                for device in self.devices
            ]
        )

    async def _get_specs(self, request: Request) -> Response:
        self._authorize(request)
        device = self.device(request.path_params["name"])
        specs = await self.fleet.specs(device)
        return _success({"device_type": device.name, "specs": specs})


def _success(data: object, status_code: int = 200) -> Response:
    document = {"status": "success", "message": "OK.", "code": str(status_code), "data": data}
    return JSONResponse(document, status_code=status_code)


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status_code=status)


def _sequence(text: str) -> str:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RefusalError(400, f"The field 'sequence_builder' is not JSON: {error}.") from error
    if not isinstance(document, dict) or "device" not in document:
        raise RefusalError(400, "The field 'sequence_builder' is no serialised Pulser sequence.")
    return text


def _job_request(job: object, sequence: str) -> dict[str, Any]:
    if not isinstance(job, dict):
        raise RefusalError(400, f"A job must be an object, not {job!r:.80}.")
    runs = wanted(job, "runs", int)
    if runs < 1:
        raise RefusalError(400, f"The field 'runs' must be at least 1, not {runs}.")
    variables = job.get("variables") or {}
    if not isinstance(variables, dict):
        raise RefusalError(400, f"The field 'variables' must be an object, not {variables!r:.80}.")
    return {"sequence": sequence, "runs": runs, "variables": variables}


def _batch_status(states: list[str]) -> str:
    if all(state == "queued" for state in states):
        return "PENDING"
    if any(state in ("queued", "running") for state in states):
        return "RUNNING"
    for state in ("failed", "cancelled"):
        if all(item == state for item in states):
            return _STATUS[state]
    return "DONE"
