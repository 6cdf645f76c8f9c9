"""IBM Quantum Compute Service: https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest.

A REST API for jobs, which are the emulator's tasks, and for sessions. Each request carries a bearer
token from IAM and the CRN of the service instance.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.device import RAN_TOO_LONG, Device
from qrmi_workflows.emulator.dialects.base import (
    Handler,
    JSONResponse,
    RefusalError,
    read_json_object,
    required_field,
    string_list,
)
from qrmi_workflows.emulator.dialects.ibm import IBMDialect, reason_code
from qrmi_workflows.emulator.dialects.ibm_backends import (
    backend_summary,
    status_message,
    status_name,
)
from qrmi_workflows.emulator.dialects.ibm_queries import JobQuery
from qrmi_workflows.emulator.store import Session, Task

__all__ = ["QuantumComputeService"]

PROGRAMS = ("sampler", "estimator", "executor", "noise-learner", "noiselearner")
_STATUS = {
    "queued": "Queued",
    "running": "Running",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_MAX_COST = 10800  # IBM's API reference: a larger value is capped
_MAX_TTL = 28800


class QuantumComputeService(IBMDialect):
    """The dialect of `ibm-quantum-compute-service`."""

    type = "ibm-quantum-compute-service"
    server_settings = (
        "cancel_route",
        "closing_cancels_running",
        "encodes_if_asked",
        "limits_shots",
        "nests_samples",
        "refuses_closed_sessions",
        "sorts_parameters",
    )
    billing_settings = (*IBMDialect.billing_settings, "bills_inactive_sessions")
    queue_settings = ("counts_others",)
    offline_settings = (*IBMDialect.offline_settings, "refuses_offline")
    overhead_seconds = 2.0  # "approximately 2s per sub-job": IBM's guide on workload usage

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_IBM_QCS_*` settings."""
        del qpu
        return {
            "QRMI_IBM_QCS_ENDPOINT": url,
            "QRMI_IBM_QCS_IAM_ENDPOINT": url,
            "QRMI_IBM_QCS_IAM_APIKEY": secrets["apikey"],
            "QRMI_IBM_QCS_SERVICE_CRN": secrets["crn"],
        }

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers; clients have `/v1` in the base URL or in each path."""
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/jobs/{id}", self._get_job),
            ("POST", "/jobs", self._create_job),
            ("GET", "/jobs/{id}/results", self._get_results),
            ("POST", "/identity/token", self._issue_token),
            ("GET", "/jobs", self._list_jobs),
            ("GET", "/jobs/{id}/logs", self._get_logs),
            ("GET", "/jobs/{id}/metrics", self._get_metrics),
            ("POST", "/jobs/{id}/cancel", self._cancel_job),
            ("DELETE", "/jobs/{id}", self._delete_job),
            ("POST", "/sessions", self._create_session),
            ("GET", "/sessions/{id}", self._get_session),
            ("PATCH", "/sessions/{id}", self._update_session),
            ("DELETE", "/sessions/{id}/close", self._close_session),
            ("PUT", "/jobs/{id}/tags", self._set_tags),
            ("GET", "/instances/usage", self._get_usage),
            ("GET", "/backends", self._list_backends),
            ("GET", "/backends/{name}/status", self._get_backend_status),
            ("GET", "/backends/{name}/configuration", self._get_configuration),
            ("GET", "/backends/{name}/properties", self._get_properties),
        ]
        return [*routes, *((method, f"/v1{path}", handler) for method, path, handler in routes)]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render IBM's error document."""
        error = {
            "code": refusal.code or refusal.status,
            "message": refusal.message,
            "solution": "Correct the request and send it again.",
            "more_info": "https://quantum.cloud.ibm.com/docs/errors",
        }
        document = {"errors": [error], "trace": str(uuid4()), "status_code": refusal.status}
        return JSONResponse(document, status_code=refusal.status)

    # Jobs

    async def _create_job(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_json_object(request)
        device = self.device(required_field(body, "backend", str))
        program = required_field(body, "program_id", str)
        if program not in PROGRAMS:
            raise RefusalError(
                404, f"Program {program!r} was not found; allowed: {', '.join(PROGRAMS)}."
            )
        params = required_field(body, "params", dict)
        if program in ("sampler", "estimator") and not required_field(params, "pubs", list):
            raise RefusalError(400, "The field 'params.pubs' must be a list of at least one PUB.")
        session_id = body.get("session_id")
        if session_id is not None:
            self._require_open_session(required_field(body, "session_id", str), device)
        if device.is_offline and device.settings.server.refuses_offline:
            raise RefusalError(409, f"Backend {device.name} is offline.")
        task = self._new_task(device, program, session_id, body)
        self.fleet.store.add_task(task, json.dumps(params))
        device.submit([task])
        return JSONResponse(
            {"id": task.id, "backend": device.name, "session_id": session_id, "private": False}
        )

    def _new_task(
        self, device: Device, program: str, session_id: str | None, body: Mapping[str, Any]
    ) -> Task:
        details: dict[str, Any] = {"private": True} if body.get("private") else {}
        if tags := string_list(body.get("tags"), "tags"):
            details["tags"] = tags
        if body.get("cost"):
            cost = min(required_field(body, "cost", int), _MAX_COST)
            if cost < 0:
                raise RefusalError(400, f"The field 'cost' must not be negative: {cost}.")
            details |= {"cost": cost, "timeout_seconds": cost}
        return Task(
            id=secrets.token_hex(10),
            qpu=device.name,
            program=program,
            session=session_id,
            accepted=self.fleet.clock.now(),
            details=details,
        )

    def _requested_task(self, request: Request) -> Task:
        self._authorize(request)
        task_id = request.path_params["id"]
        task = self.fleet.task(task_id)
        if task is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job not found. Job ID: {task_id}", 1291)
        return task

    async def _get_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        response = JSONResponse(self._job_document(task))
        if request.query_params.get("exclude_params", "").lower() == "true":
            return response
        # The stored input is JSON. Parsing it at each poll would cost more than everything else.
        params = self.fleet.store.request(task.id).encode()
        body = bytes(response.body)[:-1] + b',"params":' + params + b"}"
        return Response(body, media_type="application/json")

    def _job_document(self, task: Task) -> dict[str, Any]:
        status = _STATUS[task.state]
        state: dict[str, Any] = {"status": status}
        if task.reason:
            state |= {"reason": task.reason, "reason_code": _reason_code(task)}
        seconds = self._usage(task)
        return {
            "id": task.id,
            "backend": task.qpu,
            "state": state,
            "status": f"{status} - Ran too long" if task.reason == RAN_TOO_LONG else status,
            "program": {"id": task.program},
            "created": self.fleet.clock.iso(task.accepted),
            "cost": task.details.get("cost", _MAX_COST),
            "tags": task.details.get("tags", []),
            "session_id": task.session,
            "private": False,
            "user_id": "emulator",
            "usage": {"seconds": seconds, "quantum_seconds": seconds},
        }

    def _usage(self, task: Task) -> float:
        if not task.is_final:  # spares the database at each poll
            return 0.0
        return self.fleet.devices[task.qpu].ledger.task(task.id).usage_seconds

    async def _list_jobs(self, request: Request) -> Response:
        self._authorize(request)
        query = JobQuery.parse(request.query_params, [device.name for device in self.devices])
        tasks = self.fleet.store.find_tasks(
            limit=query.limit,
            offset=query.offset,
            newest_first=query.newest_first,
            **query.conditions,
        )
        jobs = [self._job_document(self.fleet.latest(task)) for task in tasks]
        count = self.fleet.store.count_found(**query.conditions)
        page = {"count": count, "limit": query.limit, "offset": query.offset}
        return JSONResponse({"jobs": jobs, **page})

    async def _get_results(self, request: Request) -> Response:
        task = self._requested_task(request)
        if task.state == "completed":
            return PlainTextResponse(self.fleet.store.result(task.id) or "")
        if task.is_final:
            return PlainTextResponse(task.reason or "")
        return Response(status_code=204)

    async def _get_logs(self, request: Request) -> Response:
        return PlainTextResponse(self.fleet.store.logs(self._requested_task(request).id))

    async def _get_metrics(self, request: Request) -> Response:
        task, iso = self._requested_task(request), self.fleet.clock.iso
        timestamps = {
            "created": iso(task.accepted),
            "running": iso(task.started),
            "finished": iso(task.finished),
        }
        # Integers, as the API documents; it does not say how they are rounded.
        seconds = math.ceil(self._usage(task))
        usage = {"quantum_seconds": seconds, "seconds": seconds}
        return JSONResponse({"timestamps": timestamps, "bss": {"seconds": seconds}, "usage": usage})

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

    async def _set_tags(self, request: Request) -> Response:
        task = self._requested_task(request)
        body = await read_json_object(request)
        task.details["tags"] = string_list(required_field(body, "tags", list), "tags")
        self.fleet.store.save_task(task)
        return Response(status_code=204)

    async def _get_usage(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse(
            {
                "instance_id": self.secrets["crn"],
                "plan_id": "emulator",
                "usage_consumed_seconds": int(
                    sum(device.ledger.total() for device in self.devices)
                ),
                "usage_limit_reached": False,
            }
        )

    # Sessions

    async def _create_session(self, request: Request) -> Response:
        self._authorize(request)
        body = await read_json_object(request)
        key = "backend" if body.get("backend") else "backend_name"
        device = self.device(required_field(body, key, str))
        mode = required_field(body, "mode", str)
        if mode not in ("dedicated", "batch"):
            raise RefusalError(
                400, f"The field 'mode' must be 'dedicated' or 'batch', not {mode!r}."
            )
        max_ttl = (
            required_field(body, "max_ttl", int) if body.get("max_ttl") is not None else _MAX_TTL
        )
        if max_ttl < 1:
            raise RefusalError(
                400, f"The field 'max_ttl' must be at least 1 second, not {max_ttl}."
            )
        session = Session(
            id=secrets.token_hex(10),
            qpu=device.name,
            mode=mode,
            max_ttl=max_ttl,
            created=self.fleet.clock.now(),
        )
        device.sessions.open(session)
        return JSONResponse(self._session_document(session))

    def _requested_session(self, request: Request) -> tuple[Session, Device]:
        self._authorize(request)
        session_id = request.path_params["id"]
        session = self.fleet.session(session_id)
        if session is None or session.qpu not in self.qpu_names:
            raise RefusalError(404, f"Session not found. Session ID: {session_id}")
        return session, self.fleet.devices[session.qpu]

    def _require_open_session(self, session_id: str, device: Device) -> None:
        session = self.fleet.session(session_id)
        if session is None or session.qpu != device.name:
            raise RefusalError(404, f"Session {session_id} of backend {device.name} was not found.")
        if not session.accepting or session.state == "closed":
            raise RefusalError(400, f"Session {session_id} has been closed.", 1217)

    def _session_document(self, session: Session) -> dict[str, Any]:
        iso, device = self.fleet.clock.iso, self.fleet.devices[session.qpu]
        return {
            "id": session.id,
            "backend_name": session.qpu,
            "mode": session.mode,
            "state": session.state,
            "state_reason": session.reason,
            "accepting_jobs": session.accepting,
            "started_at": iso(session.created),
            "activated_at": iso(session.activated),
            "closed_at": iso(session.closed),
            "last_job_started": iso(session.last_started),
            "last_job_completed": iso(session.last_finished),
            "interactive_ttl": int(device.settings.interactive_ttl_seconds),
            "max_ttl": session.max_ttl,
            "active_ttl": device.sessions.remaining_ttl(session),
            "user_id": "emulator",
            "elapsed_time": device.ledger.session(session.id) if session.closed else None,
        }

    async def _get_session(self, request: Request) -> Response:
        return JSONResponse(self._session_document(self._requested_session(request)[0]))

    async def _update_session(self, request: Request) -> Response:
        session, device = self._requested_session(request)
        body = await read_json_object(request)
        if required_field(body, "accepting_jobs", bool):
            raise RefusalError(400, "A session cannot be reopened; 'accepting_jobs' must be false.")
        _require_closable(session, device)
        device.sessions.stop_accepting(session.id)
        return Response(status_code=204)

    async def _close_session(self, request: Request) -> Response:
        session, device = self._requested_session(request)
        _require_closable(session, device)
        device.sessions.close(session.id)
        return Response(status_code=204)

    # Backends

    async def _list_backends(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse({"devices": [backend_summary(device) for device in self.devices]})

    def _requested_backend(self, request: Request) -> Device:
        self._authorize(request)
        return self.device(request.path_params["name"])

    async def _get_backend_status(self, request: Request) -> Response:
        device = self._requested_backend(request)
        configuration = backend_document(device.settings.model, "conf")
        return JSONResponse(
            {
                "state": status_name(device) != "offline",
                "status": "active" if device.availability == "online" else status_name(device),
                "message": status_message(device),
                "length_queue": device.unfinished,
                "backend_version": configuration["backend_version"],
            }
        )

    async def _get_configuration(self, request: Request) -> Response:
        device = self._requested_backend(request)
        document = backend_document(device.settings.model, "conf") | {"backend_name": device.name}
        return JSONResponse(document | {"simulator": False, "local": False})

    async def _get_properties(self, request: Request) -> Response:
        device = self._requested_backend(request)
        document = backend_document(device.settings.model, "props")
        return JSONResponse(document | {"backend_name": device.name})


def _require_closable(session: Session, device: Device) -> None:
    if session.state == "closed" and device.settings.server.refuses_closed_sessions:
        raise RefusalError(400, f"Session {session.id} has been closed.", 1217)


def _reason_code(task: Task) -> int:
    if task.state == "failed":
        return reason_code(task)
    return 1305 if task.reason == RAN_TOO_LONG else 1200
