"""IQM Server: https://docs.meetiqm.com/iqm-server. A REST API for circuits of native operations.

A job, which is the emulator's task, may hold several circuits. A request for its status can block
until the job has ended or the requested time has passed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects.base import (
    Dialect,
    Handler,
    JSONResponse,
    RefusalError,
    read_json_object,
    required_field,
)
from qrmi_workflows.emulator.store import Task

__all__ = ["IQMServer"]

_STATUS = {
    "queued": "waiting",
    "running": "processing",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
_CODES = {400: "bad_request", 401: "unauthorized", 404: "job_not_found", 409: "illegal_job_status"}
# The couplers of IQM's machines, as in the fake backends of IQM's own client.
_COUPLERS = {
    "adonis": ((1, 3), (2, 3), (3, 4), (3, 5)),
    "garnet": (
        *((1, 2), (1, 4), (2, 5), (3, 4), (8, 3), (4, 5), (9, 4), (5, 6), (10, 5), (6, 7)),
        *((11, 6), (12, 7), (8, 9), (8, 13), (9, 10), (9, 14), (10, 11), (10, 15), (11, 12)),
        *((16, 11), (17, 12), (13, 14), (14, 15), (18, 14), (16, 15), (19, 15), (16, 17)),
        *((16, 20), (18, 19), (19, 20)),
    ),
}
_LIMITS = (
    "max_circuits_per_job",
    "max_executions_per_job",
    "max_instructions_per_circuit",
    "max_shots_per_circuit",
)
_LIMIT = 10**6
_LINKS = ("academy_url", "documentation_url", "mock_url")
_PRICING = {
    "payg_price_per_second": "0",
    "timeslot": {"slot_duration": "1h", "slot_price": "0"},
}
_MAX_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.01


class IQMServer(Dialect):
    """The dialect of `iqm-server`."""

    type = "iqm-server"
    simulators = ("iqm", "null")
    default_model = "garnet"
    server_settings = ("cancel_route", "has_measurements", "has_timeslot")
    queue_settings = ("counts_others",)

    def models(self) -> tuple[str, ...]:
        """Return the names of IQM's machines with known couplers."""
        return tuple(_COUPLERS)

    def new_secrets(self) -> dict[str, str]:
        """Return an API token."""
        return {"token": secrets.token_urlsafe(33)}

    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the `QRMI_IQM_ISA_*` settings."""
        del qpu
        return {"QRMI_IQM_ISA_ENDPOINT": url, "QRMI_IQM_ISA_TOKEN": secrets["token"]}

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API's handlers."""
        jobs, calibration = "/api/v1/jobs", "/api/v1/calibration-sets/{qc}/{set}"
        computers = "/api/v1/quantum-computers"
        return [
            ("GET", f"{jobs}/{{id}}", self._get_job),
            ("POST", f"{jobs}/{{id}}/cancel", self._cancel_job),
            ("POST", f"{jobs}/{{qc}}/{{type}}", self._create_job),
            ("GET", f"{jobs}/{{id}}/artifacts/{{type}}", self._get_artifact),
            ("GET", computers, self._list_computers),
            ("GET", f"{computers}/{{qc}}", self._get_computer),
            ("GET", f"{computers}/{{qc}}/health", self._get_health),
            ("GET", f"{computers}/{{qc}}/queue-availability", self._get_queue),
            ("GET", f"{computers}/{{qc}}/artifacts/{{type}}", self._get_static_architecture),
            ("GET", calibration, self._get_calibration_set),
            ("GET", f"{calibration}/dynamic-quantum-architecture", self._get_architecture),
            ("GET", f"{calibration}/metrics", self._get_metrics),
        ]

    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render IQM's error document."""
        code = refusal.code or _CODES.get(refusal.status, "internal_error")
        document = {
            "error_code": code,
            "message": refusal.message,
            "request_id": str(uuid4()),
        }
        return JSONResponse(document, status_code=refusal.status)

    def _authorize(self, request: Request) -> None:
        presented = self.bearer(request).encode()
        if not secrets.compare_digest(presented, self.secrets["token"].encode()):
            raise RefusalError(401, "The API token is missing or invalid.")

    def _requested_computer(self, request: Request) -> Device:
        self._authorize(request)
        name = request.path_params["qc"]
        for device in self.devices:
            if name in (device.name, _alias(device)):
                return device
        raise RefusalError(404, f"Quantum computer {name!r} not found.", "qc_not_found")

    # Jobs

    async def _create_job(self, request: Request) -> Response:
        device, kind = self._requested_computer(request), request.path_params["type"]
        if kind != "circuit":
            raise RefusalError(400, f"Job type {kind!r} is not emulated; must be 'circuit'.")
        uses_timeslot = request.query_params.get("use_timeslot") == "true"
        if uses_timeslot and not device.settings.server.has_timeslot:
            raise RefusalError(403, "The account has booked no timeslot.", "no_booked_timeslots")
        body = await read_json_object(request)
        if not required_field(body, "circuits", list):
            raise RefusalError(400, "The field 'circuits' must hold at least one circuit.")
        for circuit in body["circuits"]:
            _check_circuit(circuit, _COUPLERS[device.settings.model])
        if not 1 <= required_field(body, "shots", int) <= _LIMIT:
            raise RefusalError(
                400, f"The field 'shots' must be from 1 to {_LIMIT}, not {body['shots']}."
            )
        if len(body["circuits"]) > _LIMIT:
            raise RefusalError(400, f"The field 'circuits' must hold at most {_LIMIT} circuits.")
        task = Task(
            id=str(uuid4()),
            qpu=device.name,
            program="circuits",
            accepted=self.fleet.clock.now(),
            details={"tag": request.query_params.get("tag"), "timeslot": uses_timeslot},
        )
        self.fleet.store.add_task(task, json.dumps(body))
        device.submit([task])
        return JSONResponse(self._job_document(task))

    def _requested_task(self, request: Request) -> Task:
        self._authorize(request)
        task_id = request.path_params["id"]
        task = self.fleet.task(task_id)
        if task is None or task.qpu not in self.qpu_names:
            raise RefusalError(404, f"Job {task_id} not found.")
        return task

    def _job_document(self, task: Task) -> dict[str, Any]:
        iso, status = self.fleet.clock.iso, _STATUS[task.state]
        moments = (
            ("waiting", task.accepted),
            ("processing", task.started),
            (status, task.finished),
        )
        failed = task.state == "failed"
        error = {"error_code": "job_failed", "message": task.reason, "source": "emulator"}
        return {
            "id": task.id,
            "type": "circuit",
            "status": status,
            "tag": task.details.get("tag"),
            "qc": {"id": _computer_id(task.qpu)},
            "artifacts": [{"type": kind} for kind in self._artifact_names(task)],
            "errors": [error] if failed else [],
            "messages": [{"message": task.reason, "source": "emulator"}] if task.reason else [],
            "timeline": [
                {"source": "emulator", "status": name, "timestamp": iso(moment)}
                for name, moment in moments
                if moment
            ],
        }

    async def _get_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        if request.query_params.get("wait_until_terminal") == "true":
            await _wait_until_final(task, request.query_params.get("timeout_seconds", ""))
        return JSONResponse(self._job_document(task))

    async def _cancel_job(self, request: Request) -> Response:
        task = self._requested_task(request)
        self.require_cancel_route(request, task.qpu)
        if task.is_final or not self.fleet.devices[task.qpu].cancel(task.id):
            raise RefusalError(409, f"Job {task.id} has ended: {_STATUS[task.state]}.")
        return JSONResponse(self._job_document(task))

    def _artifact_names(self, task: Task) -> tuple[str, ...]:
        if self.fleet.devices[task.qpu].settings.server.has_measurements:
            return ("measurements", "measurement_counts")
        return ("measurement_counts",)

    async def _get_artifact(self, request: Request) -> Response:
        task, kind = self._requested_task(request), request.path_params["type"]
        artifacts = json.loads(self.fleet.store.result(task.id) or "{}")
        artifacts = {name: artifacts.get(name) for name in self._artifact_names(task)}
        if artifacts.get(kind) is None:
            raise RefusalError(404, f"Job {task.id} has no {kind!r}.", "job_artifact_not_found")
        return JSONResponse(artifacts[kind])

    # Quantum computers

    async def _list_computers(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse({"quantum_computers": [_summary(device) for device in self.devices]})

    async def _get_computer(self, request: Request) -> Response:
        device = self._requested_computer(request)
        return JSONResponse(_summary(device) | self._details(device))

    def _details(self, device: Device) -> dict[str, Any]:
        qubits, _ = _topology(device)
        operational = {"online": "online", "offline": "offline"}
        return {
            "description": f"An emulated {device.settings.model}",
            "backend_type": "qpu",
            "pulla_enabled": False,
            "number_of_qubits": len(qubits),
            "operational": operational.get(device.availability, "maintenance"),
            "health": self._health_document(device),
            "queue_length": device.unfinished,
            "limits": dict.fromkeys(_LIMITS, _LIMIT),
            "pricing": _PRICING,
            "additional_info": {**dict.fromkeys(_LINKS, ""), "best_suited_for": []},
        }

    def _health_document(self, device: Device) -> dict[str, Any]:
        is_healthy = device.availability == "online"
        return {"healthy": is_healthy, "updated_at": self.fleet.clock.iso(self.fleet.clock.now())}

    async def _get_health(self, request: Request) -> Response:
        return JSONResponse(self._health_document(self._requested_computer(request)))

    async def _get_queue(self, request: Request) -> Response:
        device = self._requested_computer(request)
        return JSONResponse({"queue_length": device.unfinished})

    async def _get_static_architecture(self, request: Request) -> Response:
        device, kind = self._requested_computer(request), request.path_params["type"]
        if kind != "static-quantum-architectures":
            raise RefusalError(404, f"Artifact {kind!r} not found.", "qc_artifact_not_found")
        qubits, couplers = _topology(device)
        return JSONResponse(
            {
                "dut_label": device.settings.model,
                "qubits": qubits,
                "computational_resonators": [],
                "connectivity": couplers,
            }
        )

    async def _get_architecture(self, request: Request) -> Response:
        device = self._requested_computer(request)
        qubits, couplers = _topology(device)
        single = [[qubit] for qubit in qubits]
        loci = {"prx": single, "cz": couplers, "measure": single}
        return JSONResponse(
            {
                "calibration_set_id": _calibration_id(device),
                "qubits": qubits,
                "computational_resonators": [],
                "gates": {
                    name: {
                        "implementations": {"emulated": {"loci": gate_loci}},
                        "default_implementation": "emulated",
                        "override_default_implementation": {},
                    }
                    for name, gate_loci in loci.items()
                },
            }
        )

    async def _get_calibration_set(self, request: Request) -> Response:
        device = self._requested_computer(request)
        return JSONResponse(self._observations(device, "calibration-set", describes=None))

    async def _get_metrics(self, request: Request) -> Response:
        device = self._requested_computer(request)
        return JSONResponse(
            self._observations(device, "quality-metric-set", describes=_calibration_id(device))
        )

    def _observations(self, device: Device, kind: str, describes: str | None) -> dict[str, Any]:
        start = self.fleet.clock.iso(0.0)
        set_id = str(uuid5(NAMESPACE_URL, describes)) if describes else _calibration_id(device)
        return {
            "observation_set_id": set_id,
            "observation_set_type": kind,
            "observation_ids": [],
            "observations": [],
            "describes_id": describes,
            "invalid": False,
            "dut_label": device.settings.model,
            "created_timestamp": start,
            "end_timestamp": start,
        }


def _summary(device: Device) -> dict[str, str]:
    return {
        "id": _computer_id(device.name),
        "alias": _alias(device),
        "display_name": device.name,
        "station_control_version": "emulator",
    }


def _alias(device: Device) -> str:
    # QRMI 0.26.4 replaces the last underscore of a resource's name with a colon.
    head, underscore, tail = device.name.rpartition("_")
    return f"{head}:{tail}" if underscore else device.name


def _topology(device: Device) -> tuple[list[str], list[list[str]]]:
    couplers = _COUPLERS[device.settings.model]
    count = max(max(pair) for pair in couplers)
    qubits = [f"QB{number}" for number in range(1, count + 1)]
    return qubits, [[f"QB{one}", f"QB{other}"] for one, other in couplers]


def _computer_id(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"iqm:{name}"))


def _calibration_id(device: Device) -> str:
    return str(uuid5(NAMESPACE_URL, f"iqm:{device.name}:calibration"))


def _check_circuit(circuit: object, couplers: tuple[tuple[int, int], ...]) -> None:
    if not isinstance(circuit, dict) or not isinstance(circuit.get("instructions"), list):
        raise RefusalError(400, "A circuit must be an object with a list of 'instructions'.")
    pairs = {frozenset((f"QB{one}", f"QB{other}")) for one, other in couplers}
    for item in circuit["instructions"]:
        if not isinstance(item, dict) or not isinstance(item.get("args") or {}, dict):
            raise RefusalError(400, f"An instruction must be an object, not {item!r:.80}.")
        locus = item.get("locus") or item.get("qubits") or []
        if not isinstance(locus, list) or not all(isinstance(name, str) for name in locus):
            raise RefusalError(400, f"A locus must be a list of names, not {locus!r:.80}.")
        required = {"prx": ("angle", "phase"), "measure": ("key",)}.get(str(item.get("name")), ())
        if missing := [name for name in required if name not in (item.get("args") or {})]:
            raise RefusalError(400, f"The operation {item['name']!r} lacks {missing[0]!r}.")
        if item.get("name") == "cz" and frozenset(locus) not in pairs:
            raise RefusalError(
                400, f"'cz' is impossible: no coupler connects {' and '.join(locus)}."
            )


async def _wait_until_final(task: Task, timeout: str) -> None:
    seconds = min(float(timeout) if timeout.isdecimal() else _MAX_WAIT_SECONDS, _MAX_WAIT_SECONDS)
    deadline = asyncio.get_running_loop().time() + seconds
    while not task.is_final and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
