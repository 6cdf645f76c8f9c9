"""The numerical engines behind the emulated QPUs. Each has `run` and `warm`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SIMULATORS", "Outcome", "SimulationError", "load_simulator"]

SIMULATORS = {
    "aer": "qrmi_workflows.emulator.simulators.aer",
    "iqm": "qrmi_workflows.emulator.simulators.iqm",
    "qir": "qrmi_workflows.emulator.simulators.qir",
    "pulser": "qrmi_workflows.emulator.simulators.pulser",
    "emu-mps": "qrmi_workflows.emulator.simulators.emu:MPS",
    "emu-sv": "qrmi_workflows.emulator.simulators.emu:SV",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulation gave: the vendor's result document as text, and what was logged."""

    result: str
    logs: str = ""


class SimulationError(Exception):
    """A task that cannot be simulated; the vendor would say Failed.

    Args:
        reason: What cannot be done and what can.
        logs: What was logged before.
    """

    def __init__(self, reason: str, logs: str = "") -> None:
        super().__init__(reason, logs)
        self.reason = reason
        self.logs = logs

    def __str__(self) -> str:
        return self.reason


def load_simulator(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Import and warm up a simulator, in a worker process only: this takes seconds."""
    module, _, attribute = SIMULATORS[name].partition(":")
    simulator = importlib.import_module(module)
    if attribute:
        simulator = getattr(simulator, attribute)
    simulator.warm()
    run: Callable[[dict[str, Any]], dict[str, Any]] = simulator.run
    return run
