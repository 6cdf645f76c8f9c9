"""Pasqal Cloud: https://docs.pasqal.com/cloud/api. A REST API for batches of jobs.

A job is the emulator's task; the jobs of a batch share a sequence. QRMI submits batches of one job.
Pasqal's own SDK also submits parametrised sequences, several jobs with their own variables, and
open batches, to which it adds jobs later.
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

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    required_field,
)
from qrmi_workflows.emulator.dialects.pasqal import (
    PULSER_DEVICES,
    STATUS,
    batch_document,
    job_document,
    job_request,
    read_body,
    read_body_object,
    sequence_text,
)
from qrmi_workflows.emulator.store import Batch, Task
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["PasqalCloud"]

_API = "/core-fast/api"
_PASSWORD_GRANTS = ("http://auth0.com/oauth/grant-type/password-realm", "password")
_PAGE = 100


class PasqalCloud(Dialect):
    """The dialect of `pasqal-cloud`."""

    type = "pasqal-cloud"
    simulators = ("pulser", "emu-mps", "emu-sv", "null")
    default_model = "AnalogDevice"
    names = ("FRESNEL", "FRESNEL_CAN1", "EMU_MPS", "EMU_FREE", "EMU_FRESNEL")
    server_settings = ("cancel_route",)

    def models(self) -> tuple[str, ...]:
        """Return the names of Pulser's devices."""
        return PULSER_DEVICES

    def new_secrets(self) -> dict[str, str]:
        """Return the credentials of a service account and of a user, and a project id."""
        return {
            "client_id": secrets.token_urlsafe(24),
            "client_secret": secrets.token_urlsafe(48),
            "username": "user@emulator",
            "password": secrets.token_urlsafe(24),
            "project_id": str(uuid4()),
        }

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_PASQAL_CLOUD_*` settings."""
        del qpu
        return {
            "QRMI_PASQAL_CLOUD_BASE_URL": url,
            "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT": f"{url}/oauth/token",
            "QRMI_PASQAL_CLOUD_PROJECT_ID": secrets["project_id"],
            "QRMI_PASQAL_CLOUD_CLIENT_ID": secrets["client_id"],
            "QRMI_PASQAL_CLOUD_CLIENT_SECRET": secrets["client_secret"],
        }

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers."""
        v1, v2 = f"{_API}/v1", f"{_API}/v2"
        return [
            ("GET", f"{v2}/jobs/{{id}}", self._get_job),
            ("GET", f"{v2}/batches/{{id}}", self._get_batch),
            ("POST", f"{v1}/batches", self._create_batch),
            ("GET", f"{v1}/batches/{{id}}/full_results", self._get_results),
            ("PATCH", f"{v2}/batches/{{id}}/cancel", self._cancel_batch),
            ("POST", "/oauth/token", self._issue_token),
            ("GET", f"{v1}/batches", self._list_batches),
            ("GET", f"{v1}/batches/{{id}}/status", self._get_batch_status),
            ("PATCH", f"{v2}/batches/{{id}}/complete", self._close_batch),
            ("PATCH", f"{v1}/batches/cancel", self._cancel_batches),
            ("PATCH", f"{v1}/batches/{{id}}/tags", self._set_tags),
            ("POST", f"{v2}/batches/{{id}}/jobs", self._add_jobs),
            ("PATCH", f"{v2}/batches/{{id}}/cancel/jobs", self._cancel_jobs),
            ("GET", f"{v2}/jobs", self._list_jobs),
            ("GET", f"{v1}/jobs/{{id}}/status", self._get_job_status),
            ("PATCH", f"{v2}/jobs/{{id}}/cancel", self._cancel_job),
            ("GET", f"{v1}/jobs/{{id}}/results_link", self._get_results_link),
            ("GET", "/results/{id}", self._download_results),
            ("GET", f"{v1}/devices", self._list_devices),
            ("GET", f"{v1}/devices/public-specs", self._list_specs),
            ("GET", f"{v1}/devices/specs", self._map_specs),
            ("GET", f"{v1}/devices/specs/{{name}}", self._get_specs),
            ("GET", "/account/api/v1/projects", self._list_projects),
        ]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render Pasqal's JSend document."""
        document = {
            "status": "error" if refusal.status >= 500 else "fail",
            "code": str(refusal.code or refusal.status),
            "message": refusal.message,
            "data": {"description": refusal.message},
        }
        return JSONResponse(document, status_code=refusal.status)

    # Accounts

    def _authorize(self, request: Request) -> None:
        if not self.fleet.tokens.is_valid(self.bearer(request), self.type):
            raise RefusalError(401, "The access token is missing, invalid or expired.")

    async def _issue_token(self, request: Request) -> Response:
        body = (await request.body()).decode(errors="replace")
        form = {key: values[0] for key, values in parse_qs(body).items()}
        grant = form.get("grant_type")
        if grant == "client_credentials":
            fields = ("client_id", "client_secret")
        elif grant in _PASSWORD_GRANTS:
            fields = ("username", "password")
        else:
            return _oauth_error(400, "unsupported_grant_type", f"{grant!r} is not supported")
        presented = "\n".join(form.get(field, "") for field in fields)
        expected = "\n".join(self.secrets[field] for field in fields)
        if not secrets.compare_digest(presented.encode(), expected.encode()):
            return _oauth_error(401, "access_denied", "Unauthorized")
        token = self.fleet.tokens.issue(self.type)
        return JSONResponse(
            {"access_token": token, "expires_in": LIFETIME_SECONDS, "token_type": "Bearer"}
        )

    async def _list_projects(self, request: Request) -> Response:
        self._authorize(request)
        return _success([{"id": self.secrets["project_id"], "name": "emulator", "active": True}])

    # Batches

    async def _create_batch(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_body_object(request)
        if body.get("project_id") != self.secrets["project_id"]:
            raise RefusalError(403, f"No access to project {body.get('project_id')!r}.")
        sequence = body.get("sequence_builder")
        if sequence is not None:
            sequence = sequence_text(sequence, "sequence_builder")
        device = self._requested_device(body, sequence)
        batch = Batch(
            id=str(uuid4()),
            qpu=device.name,
            created=self.fleet.clock.now(),
            details={
                "sequence": sequence,
                "open": bool(body.get("open")),
                "tags": body.get("tags"),
            },
        )
        tasks, requests = self._new_tasks(batch, required_field(body, "jobs", list))
        if not tasks and not batch.details["open"]:
            raise RefusalError(400, "The field 'jobs' must hold at least one job.")
        self.fleet.store.add_batch(batch, tasks, requests)
        device.submit(tasks)
        return self._batch_response(batch, status_code=201)

    def _requested_device(self, body: Mapping[str, Any], sequence: str | None) -> Device:
        name = body.get("device_type")
        if name is None and sequence is not None:
            name = json.loads(sequence)["device"].get("name")
        if not isinstance(name, str):
            raise RefusalError(400, "The field 'device_type' must name a device.")
        return self.device(name)

    def _new_tasks(self, batch: Batch, jobs: list[Any]) -> tuple[list[Task], list[str]]:
        documents = [job_request(job, batch.details["sequence"]) for job in jobs]
        tasks = [
            Task(
                id=str(uuid4()),
                qpu=batch.qpu,
                program="sequence",
                batch=batch.id,
                accepted=self.fleet.clock.now(),
                details={"runs": item["runs"], "variables": item["variables"]},
            )
            for item in documents
        ]
        return tasks, [json.dumps(item) for item in documents]

    def _requested_batch(self, request: Request) -> Batch:
        self._authorize(request)
        return self._find_batch(request.path_params["id"])

    def _find_batch(self, batch_id: str) -> Batch:
        batch = self.fleet.store.batch(batch_id)
        if batch is None or batch.qpu not in self.qpu_names:
            raise RefusalError(404, f"Batch {batch_id} not found.")
        return batch

    def _batch_tasks(self, batch: Batch) -> list[Task]:
        return [self.fleet.latest(task) for task in self.fleet.store.find_tasks(batch=batch.id)]

    def _batch_response(self, batch: Batch, status_code: int = 200) -> Response:
        return _success(self._batch_document(batch), status_code=status_code)

    def _batch_document(self, batch: Batch) -> dict[str, Any]:
        project = self.secrets["project_id"]
        return batch_document(batch, self._batch_tasks(batch), project, self.fleet.clock.iso)

    async def _get_batch(self, request: Request) -> Response:
        return self._batch_response(self._requested_batch(request))

    async def _get_batch_status(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        document = self._batch_document(batch)
        return _success({key: document[key] for key in ("id", "status", "jobs_count_per_status")})

    async def _list_batches(self, request: Request) -> Response:
        self._authorize(request)
        batches = [item for item in self.fleet.store.batches() if item.qpu in self.qpu_names]
        return _page(request, batches, self._batch_document)

    async def _close_batch(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        return self._update_batch(batch, open=False)

    async def _set_tags(self, request: Request) -> Response:
        batch, tags = self._requested_batch(request), await read_body(request)
        return self._update_batch(batch, tags=tags)

    def _update_batch(self, batch: Batch, **details: object) -> Response:
        changed = Batch(
            id=batch.id,
            qpu=batch.qpu,
            created=batch.created,
            details={**batch.details, **details},
        )
        self.fleet.store.save_batch(changed)
        return self._batch_response(changed)

    async def _add_jobs(self, request: Request) -> Response:
        batch, jobs = self._requested_batch(request), await read_body(request)
        if not batch.details["open"]:
            raise RefusalError(409, f"Batch {batch.id} is closed.")
        if not isinstance(jobs, list):
            raise RefusalError(400, "The request body must be a list of jobs.")
        tasks, requests = self._new_tasks(batch, jobs)
        self.fleet.store.add_tasks(tasks, requests)
        self.fleet.devices[batch.qpu].submit(tasks)
        return self._batch_response(batch)

    async def _cancel_batch(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        self._cancel_tasks(request, self._batch_tasks(batch))
        return self._update_batch(batch, open=False)

    async def _cancel_batches(self, request: Request) -> Response:
        self._authorize(request)
        batch_ids = required_field(await read_body_object(request), "batch_ids", list)
        if not all(isinstance(item, str) for item in batch_ids):
            raise RefusalError(400, "The field 'batch_ids' must be a list of strings.")
        batches = [self._find_batch(batch_id) for batch_id in batch_ids]
        for batch in batches:
            self._cancel_tasks(request, self._batch_tasks(batch))
        return _success({"batches": [self._batch_document(item) for item in batches], "errors": {}})

    def _cancel_tasks(self, request: Request, tasks: list[Task]) -> None:
        for task in tasks:
            self.require_cancel_route(request, task.qpu)
            self.fleet.devices[task.qpu].cancel(task.id)

    # Jobs

    def _requested_task(self, request: Request) -> Task:
        self._authorize(request)
        task = self.fleet.task(request.path_params["id"])
        if task is None or task.batch is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {request.path_params['id']} not found.")
        return task

    def _job_document(self, task: Task) -> dict[str, Any]:
        return job_document(task, self.secrets["project_id"], self.fleet.clock.iso)

    async def _get_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        return _success(self._job_document(task))

    async def _get_job_status(self, request: Request) -> Response:
        task = self._requested_task(request)
        return _success({"id": task.id, "status": STATUS[task.state]})

    async def _list_jobs(self, request: Request) -> Response:
        self._authorize(request)
        batch_id = request.query_params.get("batch_id")
        find = self.fleet.store.find_tasks
        found = find(batch=batch_id) if batch_id else find(program="sequence")
        tasks = [item for item in found if item.batch and item.qpu in self.qpu_names]
        return _page(request, tasks, lambda task: self._job_document(self.fleet.latest(task)))

    async def _cancel_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        self._cancel_tasks(request, [task])
        return _success(self._job_document(self.fleet.task(task.id) or task))

    async def _cancel_jobs(self, request: Request) -> Response:
        batch = self._requested_batch(request)
        tasks = [task for task in self._batch_tasks(batch) if not task.is_final]
        self._cancel_tasks(request, tasks)
        return _success({"jobs": [self._job_document(task) for task in tasks], "errors": {}})

    def _result_document(self, task: Task) -> dict[str, Any]:
        return {"counter": json.loads(self.fleet.store.result(task.id) or "{}")}

    async def _get_results(self, request: Request) -> Response:
        tasks = self._batch_tasks(self._requested_batch(request))
        ended = [task for task in tasks if task.state == "completed"]
        return _success({task.id: self._result_document(task) for task in ended})

    async def _get_results_link(self, request: Request) -> Response:
        task = self._requested_task(request)
        if task.state != "completed":
            return _success({"results_link": None})
        token = self.fleet.tokens.issue(f"results of {task.id}")
        base = f"{str(request.base_url).rstrip('/')}/{self.type}"
        return _success({"results_link": f"{base}/results/{task.id}?token={token}"})

    async def _download_results(self, request: Request) -> Response:
        task_id = request.path_params["id"]
        token = request.query_params.get("token", "")
        if not self.fleet.tokens.is_valid(token, f"results of {task_id}"):
            raise RefusalError(403, "The link is invalid or has expired.")
        task = self.fleet.task(task_id)
        if task is None:
            raise RefusalError(404, f"Job {task_id} not found.")
        return JSONResponse(self._result_document(task))

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
        return _success([await self._specs(device) for device in self.devices])

    async def _map_specs(self, request: Request) -> Response:
        self._authorize(request)
        return _success({device.name: await self.fleet.specs(device) for device in self.devices})

    async def _get_specs(self, request: Request) -> Response:
        self._authorize(request)
        return _success(await self._specs(self.device(request.path_params["name"])))

    async def _specs(self, device: Device) -> dict[str, str]:
        return {"device_type": device.name, "specs": await self.fleet.specs(device)}


def _success(data: object, status_code: int = 200, **extra: object) -> Response:
    document = {"status": "success", "message": "OK.", "code": str(status_code), "data": data}
    return JSONResponse(document | extra, status_code=status_code)


def _page(request: Request, items: list[Any], render: Any) -> Response:
    offset, limit = (request.query_params.get(key, "") for key in ("offset", "limit"))
    start = int(offset) if offset.isdecimal() else 0
    end = start + (int(limit) if limit.isdecimal() else _PAGE)
    shown = [render(item) for item in items[start:end]]
    pagination = {"total": len(items), "start": start, "end": min(end, len(items))}
    return _success(shown, pagination=pagination)


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status_code=status)
