"""The user API of OQTOPUS Cloud (https://github.com/oqtopus-team/oqtopus-cloud).

A client registers a job, uploads its circuits to storage, and submits it, which queues the
emulator's task. Storage holds ZIP archives with one JSON file each. The paths were read in
oqtopus-client 1.3.0. Only jobs of the types `sampling` and `estimation` are emulated.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import zipfile
from collections import Counter
from collections.abc import Mapping
from email import message_from_bytes
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.backends import backend_document, fake_backends
from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    read_json_object,
    required_field,
)
from qrmi_workflows.emulator.store import Batch, Task
from qrmi_workflows.vendors.ibm.results import decode_arrays

__all__ = ["Oqtopus"]

_STATUS = {"queued": "ready", "running": "running", "completed": "succeeded"}
_PROGRAMS = {"sampling": "sampler", "estimation": "estimator"}
_MAX_SHOTS = 10_000_000
_QUBITS = re.compile(r"^\s*qubit(?:\[(\d+)\])?", re.MULTILINE)


class Oqtopus(Dialect):
    """The dialect of `oqtopus`."""

    type = "oqtopus"
    simulators = ("aer", "null")
    default_model = "fez"
    server_settings = ("cancel_route",)
    queue_settings = ("counts_others",)

    def models(self) -> tuple[str, ...]:
        """Return the names of qiskit-ibm-runtime's fake backends, whose sizes its QPUs have."""
        return fake_backends()

    def new_secrets(self) -> dict[str, str]:
        """Return an API token."""
        return {"token": secrets.token_urlsafe(33)}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_OQTOPUS_*` settings."""
        del qpu
        return {"QRMI_OQTOPUS_URL": url, "QRMI_OQTOPUS_API_TOKEN": secrets["token"]}

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers."""
        return [
            ("GET", "/jobs/{id}/status", self._get_status),
            ("GET", "/jobs/{id}", self._get_job),
            ("POST", "/jobs", self._register_job),
            ("POST", "/jobs/{id}/submit", self._submit_job),
            ("POST", "/jobs/{id}/cancel", self._cancel_job),
            ("POST", "/storage/{id}", self._upload),
            ("GET", "/storage/{id}/{name}", self._download),
            ("GET", "/devices", self._list_devices),
            ("GET", "/devices/{id}", self._get_device),
        ]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render OQTOPUS's error document."""
        return JSONResponse({"message": refusal.message}, status_code=refusal.status)

    def _authorize(self, request: Request) -> None:
        presented = request.headers.get("q-api-token", "").encode()
        if not secrets.compare_digest(presented, self.secrets["token"].encode()):
            raise RefusalError(401, "The API token is missing or invalid.")

    # Jobs

    async def _register_job(self, request: Request) -> Response:
        self._authorize(request)
        job_id = str(uuid4())
        # A job belongs to a QPU only once it is submitted; until then, to the first one.
        details = {"input": None, "submitted": None}
        now = self.fleet.clock.now()
        job = Batch(id=job_id, qpu=self.devices[0].name, created=now, details=details)
        self.fleet.store.add_batch(job, [], [])
        base = str(request.url).removesuffix("/jobs")
        upload = {"url": f"{base}/storage/{job_id}", "fields": {"key": f"{job_id}/input.zip"}}
        return JSONResponse({"job_id": job_id, "presigned_url": upload})

    def _requested_job(self, request: Request) -> Batch:
        job = self.fleet.store.batch(request.path_params["id"])
        if job is None or job.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return job

    async def _upload(self, request: Request) -> Response:
        # Like a presigned URL, the address is the credential.
        job = self._requested_job(request)
        content = _unpack(request.headers.get("content-type", ""), await request.body())
        self._save(job, job.qpu, {**job.details, "input": content})
        return Response(status_code=204)

    async def _submit_job(self, request: Request) -> Response:
        self._authorize(request)
        job, body = self._requested_job(request), await read_json_object(request)
        device = self.device(required_field(body, "device_id", str))
        kind = required_field(body, "job_type", str)
        if kind not in _PROGRAMS:
            allowed = " or ".join(_PROGRAMS)
            raise RefusalError(400, f"Job type {kind!r} is not emulated; must be {allowed}.")
        if not 1 <= required_field(body, "shots", int) <= _MAX_SHOTS:
            raise RefusalError(400, f"'shots' must be from 1 to {_MAX_SHOTS}.")
        if job.details["input"] is None or job.details["submitted"]:
            raise RefusalError(400, f"Job {job.id} has no input, or was submitted before.")
        self._save(job, device.name, {**job.details, "submitted": body})
        task = Task(
            id=job.id,
            qpu=device.name,
            program=_PROGRAMS[kind],
            batch=job.id,
            accepted=self.fleet.clock.now(),
        )
        request_text = json.dumps(_to_primitive(kind, job.details["input"], body["shots"]))
        self.fleet.store.add_task(task, request_text)
        device.submit([task])
        return JSONResponse({"message": "Job submitted."})

    def _save(self, job: Batch, qpu: str, details: dict[str, Any]) -> None:
        self.fleet.store.save_batch(Batch(id=job.id, qpu=qpu, created=job.created, details=details))

    def _status(self, job: Batch) -> str:
        task = self.fleet.task(job.id)
        return "registered" if task is None else _STATUS.get(task.state, task.state)

    async def _get_status(self, request: Request) -> Response:
        self._authorize(request)
        job = self._requested_job(request)
        return JSONResponse({"job_id": job.id, "status": self._status(job)})

    async def _get_job(self, request: Request) -> Response:
        self._authorize(request)
        job, status = self._requested_job(request), self._status(self._requested_job(request))
        task, body = self.fleet.task(job.id), job.details["submitted"] or {}
        document = {name: body.get(name) for name in ("job_type", "device_id", "shots")}
        # oqtopus-client refuses a job without a name.
        document |= {name: body.get(name) or "" for name in ("name", "description")}
        base = str(request.url).partition("/jobs/")[0]
        info = {"input": f"{base}/storage/{job.id}/input"}
        if status == "succeeded":
            info["result"] = f"{base}/storage/{job.id}/result"
        if task is not None and task.reason:
            info["message"] = str(task.reason)
        return JSONResponse({"job_id": job.id, "status": status, **document, "job_info": info})

    async def _cancel_job(self, request: Request) -> Response:
        self._authorize(request)
        job = self._requested_job(request)
        self.require_cancel_route(request, job.qpu)
        task = self.fleet.task(job.id)
        if task is None or not self.fleet.devices[job.qpu].cancel(job.id):
            raise RefusalError(400, f"Job {job.id} is {self._status(job)}: cannot be cancelled.")
        return JSONResponse({"message": "Cancel request accepted."})

    async def _download(self, request: Request) -> Response:
        job, name = self._requested_job(request), request.path_params["name"]
        text = self.fleet.store.result(job.id) if name == "result" else None
        if name == "input" and job.details["input"] is not None:
            content = job.details["input"]
        elif text is not None:
            content = _to_result(job.details["submitted"]["job_type"], text)
        else:
            raise RefusalError(404, f"Job {job.id} has no {name}.")
        return Response(_pack(name, content), media_type="application/zip")

    # Devices

    async def _list_devices(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse([_device_document(device) for device in self.devices])

    async def _get_device(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse(_device_document(self.device(request.path_params["id"])))


def _device_document(device: Device) -> dict[str, Any]:
    configuration = backend_document(device.settings.model, "conf")
    width = configuration["n_qubits"]
    return {
        "device_id": device.name,
        "device_type": "simulator",
        "status": "available" if device.availability == "online" else "unavailable",
        "n_pending_jobs": device.queue_length + device.others_waiting,
        "n_qubits": width,
        "basis_gates": configuration["basis_gates"],
        "supported_instructions": ["measure", "barrier", "reset"],
        "device_info": json.dumps({"n_qubits": width}),
        "description": "An emulated OQTOPUS device",
    }


def _to_primitive(kind: str, content: Mapping[str, Any], shots: int) -> dict[str, Any]:
    """Return the input of IBM's primitive that computes the same."""
    (program,) = required_field(dict(content), "program", list)
    if kind == "sampling":
        return {"pubs": [[program, None, shots]], "version": 2}
    terms: dict[str, float] = {}
    for item in content.get("operator") or []:
        label = _to_label(str(item.get("pauli", "")), program)
        terms[label] = terms.get(label, 0.0) + float(item.get("coeff", 1.0))
    return {"pubs": [[program, terms, None, shots**-0.5]], "version": 2}


def _to_label(pauli: str, program: str) -> str:
    """Return OQTOPUS's `X 0 Z 2` as Qiskit's label, which has a letter for each qubit."""
    words = pauli.split()
    letters = ["I"] * sum(int(size or 1) for size in _QUBITS.findall(program))
    try:
        for letter, index in zip(words[::2], words[1::2], strict=True):
            letters[int(index)] = letter
    except (ValueError, IndexError) as error:
        raise RefusalError(400, f"The operator {pauli!r} is malformed: {error}.") from error
    return "".join(reversed(letters))


def _to_result(kind: str, text: str) -> dict[str, Any]:
    (arrays,) = decode_arrays(_PROGRAMS[kind], text)
    if kind == "estimation":
        result = {"exp_value": float(arrays["evs"]), "stds": float(arrays["stds"])}
        return {"estimation": result}
    # One bit string for all registers, the last one first.
    rows = zip(*(array.tolist() for array in reversed(arrays.values())), strict=True)
    counts = Counter("".join(str(bit) for part in row for bit in part) for row in rows)
    return {"sampling": {"counts": dict(counts), "divided_counts": None}}


def _pack(name: str, content: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.json", json.dumps(content))
    return buffer.getvalue()


def _unpack(content_type: str, body: bytes) -> dict[str, Any]:
    """Return the JSON in the archive of a multipart form."""
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    files = [part.get_payload(decode=True) for part in message.walk() if part.get_filename()]
    try:
        (file,) = files
        with zipfile.ZipFile(io.BytesIO(bytes(file))) as archive:
            content = json.loads(archive.read(archive.namelist()[0]))
        return dict(content)
    except (ValueError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise RefusalError(
            400, f"The body must be a form with one ZIP archive of one JSON object: {error}."
        ) from error
