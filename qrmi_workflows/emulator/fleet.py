"""The part of the emulator behind the dialects: devices, store, workers and credentials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.device import Device, TaskAdapter
from qrmi_workflows.emulator.faults import FaultRule, FaultRules
from qrmi_workflows.emulator.folder import Credentials, Folder
from qrmi_workflows.emulator.settings import EmulatorSettings
from qrmi_workflows.emulator.store import Session, Store, Task
from qrmi_workflows.emulator.tokens import TokenIssuer
from qrmi_workflows.emulator.workers import WorkerPool

__all__ = ["Fleet"]


class Fleet:
    """The emulator without its HTTP server.

    Args:
        settings: The QPUs and their behaviour.
        folder: The state folder.
        credentials: The credentials that clients must present.
        dialects: The dialect of each resource type in use.
    """

    def __init__(
        self,
        settings: EmulatorSettings,
        folder: Folder,
        credentials: Credentials,
        dialects: Mapping[str, TaskAdapter],
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.credentials = credentials
        self.clock = Clock()
        self.faults = FaultRules()
        for rule in settings.faults:
            self.faults.add(rule)
        self.store = Store(folder.database)
        generation = int(self.store.get_value("token generation") or 0)
        self.tokens = TokenIssuer(credentials.signing_key, self.clock, generation)
        self.pool = WorkerPool(settings.workers, settings.worker_memory_gib)
        self.devices = {
            name: Device(qpu, settings, self, dialects[qpu.type])
            for name, qpu in settings.qpus.items()
        }

    def start(self) -> None:
        """Start a worker per simulator in the background, and resume unfinished tasks."""
        for simulator in {device.settings.simulator for device in self.devices.values()}:
            if simulator != "null":
                self.pool.warm(simulator)
        for device in self.devices.values():
            device.restore()

    async def stop(self) -> None:
        """Stop all activity. Unfinished tasks stay in the store and resume at the next start."""
        self.pool.stop_starting()
        for device in self.devices.values():
            await device.stop()
        await self.pool.stop()
        self.store.close()

    def task(self, task_id: str) -> Task | None:
        """Return a task of any QPU: the device's object if it is unfinished, else the stored one.

        Only the device's object changes as the task progresses.
        """
        for device in self.devices.values():
            if task := device.unfinished_task(task_id):
                return task
        return self.store.task(task_id)

    def latest(self, stored: Task) -> Task:
        """Return the current object of a task that was read from the store."""
        device = self.devices.get(stored.qpu)
        return (device.unfinished_task(stored.id) if device else None) or stored

    def session(self, session_id: str) -> Session | None:
        """Return a session of any QPU, or `None` if the id is unknown."""
        for device in self.devices.values():
            if session := device.sessions.find(session_id):
                return session
        return self.store.session(session_id)

    async def specs(self, device: Device) -> str:
        """Return a QPU's Pulser device as JSON, named after the QPU."""
        key = f"specs:{device.name}:{device.settings.model}"
        specs = self.store.get_value(key)
        if specs is None:
            work = {"program": "specs", "model": device.settings.model, "qpu": device.name}
            specs = (await self.pool.run("pulser", work)).result
            self.store.set_value(key, specs)
        return specs

    def apply_immediate(self, rule: FaultRule) -> None:
        """Apply a fault that affects the whole emulator rather than one request."""
        if rule.kind == "expire-tokens":
            self.tokens.expire_all()
            self.store.set_value("token generation", str(self.tokens.generation))
        elif rule.kind == "clock-skew":
            self.clock.skew_seconds = rule.seconds
        elif rule.kind == "close-sessions":
            for device in self.devices.values():
                device.sessions.close_all("closed early by a fault")

    def counters(self) -> dict[str, Any]:
        """Count the tasks and sessions by state, in total and per QPU."""
        qpus = {name: _zero() for name in self.devices}
        for qpu, state, count in self.store.count_tasks():
            _count_tasks(qpus.setdefault(qpu, _zero()), state, count)
        for qpu, state, count in self.store.count_sessions():
            _count_sessions(qpus.setdefault(qpu, _zero()), state, count)
        for device in self.devices.values():
            # The store learns of a task's start only when it ends.
            tasks = qpus[device.name]["tasks"]
            tasks["queued"], tasks["running"] = device.queue_length, device.busy_lanes
        return {**_sum(qpus), "qpus": qpus}

    def billing(self) -> dict[str, Any]:
        """Return what the vendors bill, in seconds: in total, per QPU, session and task."""
        qpus = {name: device.ledger.report() for name, device in self.devices.items()}
        total = sum(report["billed_seconds"] for report in qpus.values())
        return {"billed_seconds": round(total, 6), "qpus": qpus}


def _zero() -> dict[str, dict[str, int]]:
    tasks = ("accepted", "completed", "failed", "cancelled", "finished", "queued", "running")
    return {"tasks": dict.fromkeys(tasks, 0), "sessions": {"opened": 0, "closed": 0, "open": 0}}


def _count_tasks(counters: dict[str, dict[str, int]], state: str, count: int) -> None:
    tasks = counters["tasks"]
    tasks["accepted"] += count
    if state not in ("queued", "running"):
        tasks[state] += count
        tasks["finished"] += count


def _count_sessions(counters: dict[str, dict[str, int]], state: str, count: int) -> None:
    sessions = counters["sessions"]
    sessions["opened"] += count
    sessions["closed" if state == "closed" else "open"] += count


def _sum(qpus: Mapping[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = json.loads(json.dumps(_zero()))
    for counters in qpus.values():
        for group, values in counters.items():
            for name, value in values.items():
                total[group][name] += value
    return total
