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
    Handler,
    JSONResponse,
    RefusalError,
)
from qrmi_workflows.emulator.dialects.pasqal import PULSER_DEVICES
from qrmi_workflows.emulator.dialects.pasqal_batches import BatchHandlers, success
from qrmi_workflows.emulator.store import Task
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS

__all__ = ["PasqalCloud"]

_API = "/core-fast/api"
_PASSWORD_GRANTS = ("http://auth0.com/oauth/grant-type/password-realm", "password")


class PasqalCloud(BatchHandlers):
    """The dialect of `pasqal-cloud`."""

    type = "pasqal-cloud"
    simulators = ("pulser", "emu-mps", "emu-sv", "null")
    default_model = "AnalogDevice"
    names = ("FRESNEL", "FRESNEL_CAN1", "EMU_MPS", "EMU_FREE", "EMU_FRESNEL")
    server_settings = ("cancel_route", "quoted_programs")

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
            ("POST", f"{v1}/batches/{{id}}/rebatch", self._rebatch),
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

    def authorize(self, request: Request) -> None:
        """Refuse a request without a valid access token."""
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
        self.authorize(request)
        return success([{"id": self.secrets["project_id"], "name": "emulator", "active": True}])

    # Results

    def _result_document(self, task: Task) -> dict[str, Any]:
        return {"counter": json.loads(self.fleet.store.result(task.id) or "{}")}

    async def _get_results(self, request: Request) -> Response:
        tasks = self._batch_tasks(self._requested_batch(request))
        ended = [task for task in tasks if task.state == "completed"]
        return success({task.id: self._result_document(task) for task in ended})

    async def _get_results_link(self, request: Request) -> Response:
        task = self._requested_task(request)
        if task.state != "completed":
            return success({"results_link": None})
        token = self.fleet.tokens.issue(f"results of {task.id}")
        base = f"{str(request.base_url).rstrip('/')}/{self.type}"
        return success({"results_link": f"{base}/results/{task.id}?token={token}"})

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
        return success(
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
        return success([await self._specs(device) for device in self.devices])

    async def _map_specs(self, request: Request) -> Response:
        self.authorize(request)
        return success({device.name: await self.fleet.specs(device) for device in self.devices})

    async def _get_specs(self, request: Request) -> Response:
        self.authorize(request)
        return success(await self._specs(self.device(request.path_params["name"])))

    async def _specs(self, device: Device) -> dict[str, str]:
        return {"device_type": device.name, "specs": await self.fleet.specs(device)}


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status_code=status)
