"""All that is behind the dialects: the devices, the store, the workers, the credentials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.dialects import load_dialect
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
        settings: What to emulate.
        folder: Where its state lives.
        credentials: What clients must present.
    """

    def __init__(
        self, settings: EmulatorSettings, folder: Folder, credentials: Credentials
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.credentials = credentials
        self.clock = Clock()
        self.faults = FaultRules()
        for rule in settings.faults:
            self.faults.add(rule)
        self.store = Store(folder.database)
        generation = int(self.store.note("token generation") or 0)
        self.tokens = TokenIssuer(credentials.signing_key, self.clock, generation)
        self.pool = WorkerPool(settings.workers, settings.worker_memory_gib)
        self.dialects = {name: load_dialect(name) for name in sorted(_types(settings))}
        for dialect in self.dialects.values():
            dialect.fleet = self
        self.devices = {
            name: Device(qpu, settings, self, self.dialects[qpu.type])
            for name, qpu in settings.qpus.items()
        }

    def start(self) -> None:
        """Warm the simulators up and take up unfinished tasks."""
        for simulator in {device.settings.simulator for device in self.devices.values()}:
            if simulator != "null":
                self.pool.warm(simulator)
        for device in self.devices.values():
            device.restore()

    async def stop(self) -> None:
        """Stop all activity; what is unfinished stays remembered."""
        self.pool.retire()
        for device in self.devices.values():
            await device.stop()
        await self.pool.stop()
        self.store.close()

    def task(self, task_id: str) -> Task | None:
        """Return a task of any QPU, the live one while it is unfinished."""
        for device in self.devices.values():
            if task := device.task(task_id):
                return task
        return self.store.task(task_id)

    def live(self, task: Task) -> Task:
        """Return a task as it is now, given the one that is stored."""
        device = self.devices.get(task.qpu)
        return (device.task(task.id) if device else None) or task

    def session(self, session_id: str) -> Session | None:
        """Return a session of any QPU."""
        for device in self.devices.values():
            if session := device.sessions.find(session_id):
                return session
        return self.store.session(session_id)

    async def specs(self, device: Device) -> str:
        """Return the JSON of a Pulser device, under the name of the QPU."""
        name = f"specs:{device.name}:{device.settings.model}"
        known = self.store.note(name)
        if known is None:
            job = {"program": "specs", "model": device.settings.model, "qpu": device.name}
            known = (await self.pool.run("pulser", job)).result
            self.store.set_note(name, known)
        return known

    def apply_immediate(self, rule: FaultRule) -> None:
        """Let a fault happen that is not about one request."""
        if rule.kind == "expire-tokens":
            self.tokens.expire_all()
            self.store.set_note("token generation", str(self.tokens.generation))
        elif rule.kind == "clock-skew":
            self.clock.skew_seconds = rule.seconds
        elif rule.kind == "close-sessions":
            for device in self.devices.values():
                device.sessions.close_all("closed early, as a fault")

    def counters(self) -> dict[str, Any]:
        """Return how many tasks and sessions there were and are, in all and per QPU."""
        qpus = {name: _zero() for name in self.devices}
        for qpu, state, count in self.store.count_tasks():
            _count_tasks(qpus.setdefault(qpu, _zero()), state, count)
        for qpu, state, count in self.store.count_sessions():
            _count_sessions(qpus.setdefault(qpu, _zero()), state, count)
        for device in self.devices.values():
            tasks = qpus[device.name]["tasks"]
            tasks["queued"], tasks["running"] = device.queue_length, device.busy_lanes
        return {**_sum(qpus), "qpus": qpus}


def _types(settings: EmulatorSettings) -> set[str]:
    return {qpu.type for qpu in settings.qpus.values()}


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
