"""IBM Quantum System API, formerly Direct Access API.

A job, which is the emulator's task, has its input, results and logs in S3-compatible storage, at
presigned URLs that the client creates. The API has no queue: it rejects a job if all lanes are busy
(429) or another workload manager has reserved them (423).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Handler,
    JSONResponse,
    RefusalError,
    read_json_object,
    required_field,
)
from qrmi_workflows.emulator.dialects.ibm import IBMDialect, reason_code
from qrmi_workflows.emulator.dialects.ibm_backends import status_message, status_name
from qrmi_workflows.emulator.objects import ObjectStore
from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.store import Task

__all__ = ["QuantumSystem"]

_STATUS = {
    "queued": "Running",
    "running": "Running",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_PROGRAMS = ("sampler", "estimator", "executor")
_BUCKET = "qrmi"
_STORAGE_SECONDS = 60
# The storage is normally the emulator's own, on a loopback address that no proxy reaches.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class QuantumSystem(IBMDialect):
    """The dialect of `ibm-quantum-system`."""

    type = "ibm-quantum-system"
    server_settings = (
        "cancel_route",
        "encodes_if_asked",
        "finished_jobs_hold_lanes",
        "limits_shots",
        "nests_samples",
        "repeated_jobs_accepted",
        "sorts_parameters",
    )

    def new_secrets(self) -> dict[str, str]:
        """Return an API key, the CRN of a service instance, and a pair of S3 keys."""
        keys = {"access_key": secrets.token_hex(16), "secret_key": secrets.token_hex(24)}
        return {**super().new_secrets(), **keys}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_IBM_QS_*` settings."""
        del qpu
        return {
            "QRMI_IBM_QS_ENDPOINT": url,
            "QRMI_IBM_QS_IAM_ENDPOINT": url,
            "QRMI_IBM_QS_IAM_APIKEY": secrets["apikey"],
            "QRMI_IBM_QS_SERVICE_CRN": secrets["crn"],
            # Without the trailing slash, QRMI 0.26.4 builds wrong paths.
            "QRMI_IBM_QS_S3_ENDPOINT": f"{url}/s3/",
            "QRMI_IBM_QS_S3_BUCKET": _BUCKET,
            "QRMI_IBM_QS_S3_REGION": "us-east",
            "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": secrets["access_key"],
            "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY": secrets["secret_key"],
        }

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the handlers of the API and of the object store."""
        objects = "/s3/{bucket}/{key:path}"
        return [
            ("GET", "/v1/jobs/{id}", self._get_job),
            ("POST", "/v1/jobs", self._create_job),
            ("GET", objects, self._handle_object),
            ("PUT", objects, self._handle_object),
            ("DELETE", objects, self._handle_object),
            ("POST", "/identity/token", self._issue_token),
            ("GET", "/v1/jobs", self._list_jobs),
            ("POST", "/v1/jobs/{id}/cancel", self._cancel_job),
            ("DELETE", "/v1/jobs/{id}", self._delete_job),
            ("GET", "/v1/backends", self._list_backends),
            ("GET", "/v1/backends/{name}", self._get_backend),
            ("GET", "/v1/backends/{name}/lanes", self._get_lanes),
            ("GET", "/v1/backends/{name}/configuration", self._get_configuration),
            ("GET", "/v1/backends/{name}/properties", self._get_properties),
            ("GET", "/version", self._get_version),
        ]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render IBM's error document."""
        error = {
            "code": str(refusal.code or refusal.status),
            "message": refusal.message,
            "more_info": "https://cloud.ibm.com/apidocs/quantum-computing#error-handling",
        }
        document = {
            "status_code": refusal.status,
            "title": refusal.message,
            "trace": str(uuid4()),
            "correlation_id": secrets.token_hex(10),
            "errors": [error],
        }
        return JSONResponse(document, status_code=refusal.status)

    async def read_request(self, task: Task, request: str) -> str:
        """Fetch a job's input from its storage, and check its shots."""
        url = json.loads(request)["input"]["presigned_url"]
        text = (await _transfer("GET", url)).decode(errors="replace")
        self.check_shots(task, text)
        return text

    async def write_outcome(self, task: Task, result: str | None, logs: str) -> None:
        """Upload a job's results and logs to its storage."""
        storage = json.loads(self.fleet.store.request(task.id))
        if result is not None:
            await _transfer("PUT", storage["results"]["presigned_url"], result.encode())
        await _transfer("PUT", storage["logs"]["presigned_url"], logs.encode())

    async def _handle_object(self, request: Request) -> Response:
        keys = {self.secrets["access_key"]: self.secrets["secret_key"]}
        objects = ObjectStore(self.fleet.store, self.fleet.clock, _BUCKET, keys)
        return await objects.answer(request)

    async def _get_version(self, request: Request) -> Response:
        del request
        return JSONResponse({"version": "emulator"})

    # Jobs

    async def _create_job(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_json_object(request)
        device = self.device(required_field(body, "backend", str))
        program = required_field(body, "program_id", str)
        if program not in _PROGRAMS:
            raise RefusalError(
                400, f"Program {program!r} is not supported; allowed: {', '.join(_PROGRAMS)}."
            )
        timeout = required_field(body, "timeout_secs", int)
        if timeout < 1:
            raise RefusalError(400, f"The field 'timeout_secs' must be at least 1, not {timeout}.")
        task = Task(
            id=_parse_job_id(body),
            qpu=device.name,
            program=program,
            accepted=self.fleet.clock.now(),
            details={"timeout_seconds": timeout},
        )
        storage = json.dumps(_parse_storage(body))
        if self._is_known(task, storage):
            return Response(status_code=204)
        self._require_lane(device)
        self.fleet.store.add_task(task, storage)
        device.submit([task])
        return Response(status_code=204)

    def _is_known(self, task: Task, storage: str) -> bool:
        """Return whether the same job already exists; refuse a different job with its id."""
        if self.fleet.task(task.id) is None:
            return False
        accepts_repetition = self.fleet.devices[task.qpu].settings.server.repeated_jobs_accepted
        if not accepts_repetition or self.fleet.store.request(task.id) != storage:
            raise RefusalError(409, f"Job {task.id} already exists.")
        return True

    def _require_lane(self, device: Device) -> None:
        if device.availability == "reserved":
            raise RefusalError(423, f"Backend {device.name} is reserved.")
        if device.is_offline:
            raise RefusalError(409, f"Backend {device.name} is offline.")
        if self._jobs_in_lanes(device) >= device.settings.lanes:
            raise RefusalError(
                429, f"All {device.settings.lanes} lanes of backend {device.name} are in use."
            )

    def _jobs_in_lanes(self, device: Device) -> int:
        unfinished = device.busy_lanes + device.queue_length
        if not device.settings.server.finished_jobs_hold_lanes:
            return unfinished
        ended = ("completed", "failed", "cancelled")
        return unfinished + len(self.fleet.store.find_tasks(qpu=device.name, states=ended))

    def _requested_task(self, request: Request) -> Task:
        self._authorize(request)
        task_id = request.path_params["id"]
        task = self.fleet.task(task_id)
        if task is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {task_id} not found.", "1291")
        return task

    def _document(self, task: Task) -> dict[str, Any]:
        iso = self.fleet.clock.iso
        document: dict[str, Any] = {
            "id": task.id,
            "backend": task.qpu,
            "program_id": task.program,
            "timeout_secs": task.details["timeout_seconds"],
            "status": _STATUS[task.state],
            "created_time": iso(task.accepted),
            "storage": json.loads(self.fleet.store.request(task.id)),
        }
        if task.is_final:
            seconds = self.fleet.devices[task.qpu].ledger.task(task.id).usage_seconds
            document["end_time"] = iso(task.finished)
            document["usage"] = {"quantum_nanoseconds": int(1e9 * seconds)}
        if task.state == "failed":
            document |= {"reason_code": reason_code(task), "reason_message": task.reason}
        return document

    async def _get_job(self, request: Request) -> Response:
        return JSONResponse(self._document(self._requested_task(request)))

    async def _list_jobs(self, request: Request) -> Response:
        self._authorize(request)
        jobs = [
            self._document(self.fleet.latest(task))
            for device in self.devices
            for task in self.fleet.store.find_tasks(qpu=device.name, limit=1000, newest_first=True)
        ]
        return JSONResponse({"jobs": jobs})

    async def _cancel_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        self.require_cancel_route(request, task.qpu)
        if task.is_final or not self.fleet.devices[task.qpu].cancel(task.id):
            raise RefusalError(409, f"Job {task.id} has ended: {_STATUS[task.state]}.")
        return Response(status_code=204)

    async def _delete_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        if not task.is_final:
            raise RefusalError(409, f"Job {task.id} has not ended: {_STATUS[task.state]}.")
        task.deleted = True
        self.fleet.store.save_task(task)
        return Response(status_code=204)

    # Backends

    def _requested_backend(self, request: Request) -> Device:
        self._authorize(request)
        return self.device(request.path_params["name"])

    async def _list_backends(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse({"backends": [_backend_document(device) for device in self.devices]})

    async def _get_backend(self, request: Request) -> Response:
        return JSONResponse(_backend_document(self._requested_backend(request)))

    async def _get_lanes(self, request: Request) -> Response:
        lanes = self._requested_backend(request).settings.lanes
        return JSONResponse(
            {"hpc_workload_manager": {"lanes": lanes}, "ibm_quantum_compute": {"lanes": 0}}
        )

    async def _get_configuration(self, request: Request) -> Response:
        device = self._requested_backend(request)
        document = backend_document(device.settings.model, "conf")
        return JSONResponse(document | {"backend_name": device.name, "simulator": False})

    async def _get_properties(self, request: Request) -> Response:
        device = self._requested_backend(request)
        document = backend_document(device.settings.model, "props")
        return JSONResponse(document | {"backend_name": device.name})


def _backend_document(device: Device) -> dict[str, Any]:
    reserved = device.availability == "reserved"
    return {
        "name": device.name,
        "status": "online" if reserved else status_name(device),
        "message": status_message(device),
        "version": backend_document(device.settings.model, "conf")["backend_version"],
        "locked": reserved,
    }


def _parse_job_id(body: Mapping[str, Any]) -> str:
    text = required_field(body, "id", str)
    try:
        return str(UUID(text))
    except ValueError as error:
        raise RefusalError(400, f"The field 'id' must be a UUID, not {text!r:.80}.") from error


def _parse_storage(body: Mapping[str, Any]) -> dict[str, Any]:
    storage: dict[str, Any] = required_field(body, "storage", dict)
    for name in ("input", "results", "logs"):
        entry = required_field(storage, name, dict)
        url = required_field(entry, "presigned_url", str)
        if not url.startswith(("http://", "https://")):
            raise RefusalError(
                400, f"The field 'storage.{name}.presigned_url' must be an HTTP URL."
            )
    return storage


async def _transfer(method: str, url: str, body: bytes | None = None) -> bytes:
    try:
        return await asyncio.to_thread(_request, method, url, body)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise SimulationError(
            f"{method} request to the job's storage failed: {error.code} {text}"
        ) from error
    except (OSError, ValueError) as error:
        raise SimulationError(f"{method} request to the job's storage failed: {error}") from error


def _request(method: str, url: str, body: bytes | None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - checked above
    if body is not None:
        request.add_header("Content-Type", "application/json")
    with _DIRECT.open(request, timeout=_STORAGE_SECONDS) as response:
        content: bytes = response.read()
    return content
