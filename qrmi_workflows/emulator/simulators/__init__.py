"""The simulators, the numerical engines behind the emulated QPUs.

Each has a function `warm`, which imports what the first simulation needs, and a function `run`.
They are imported only in worker processes, because Qiskit and Pulser take seconds to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CODE_PREFIX", "SIMULATORS", "Outcome", "SimulationError", "load_simulator"]

SIMULATORS = {
    "aer": "qrmi_workflows.emulator.simulators.aer",
    "iqm": "qrmi_workflows.emulator.simulators.iqm",
    "qir": "qrmi_workflows.emulator.simulators.qir",
    "pulser": "qrmi_workflows.emulator.simulators.pulser",
    "emu-mps": "qrmi_workflows.emulator.simulators.emu:MPS",
    "emu-sv": "qrmi_workflows.emulator.simulators.emu:SV",
}

CODE_PREFIX = "https://ibm.biz/error_codes#"
"""What comes before the code at the end of an IBM error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a simulation.

    Attributes:
        result: The result as the vendor's API returns it.
        logs: The simulation's logs.
    """

    result: str
    logs: str = ""


class SimulationError(Exception):
    """A task that cannot be simulated, which a vendor would report as failed.

    Args:
        reason: The problem and, where possible, what is allowed.
        logs: The logs up to that point.
    """

    def __init__(self, reason: str, logs: str = "") -> None:
        super().__init__(reason, logs)
        self.reason = reason
        self.logs = logs

    def __str__(self) -> str:
        return self.reason


def load_simulator(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Import and warm up a simulator, which takes seconds, and return its `run`.

    Args:
        name: One of `SIMULATORS`, or a reference to another package's simulator: `module`, or
            `module:object`.
    """
    module, _, attribute = SIMULATORS.get(name, name).partition(":")
    simulator = importlib.import_module(module)
    if attribute:
        simulator = getattr(simulator, attribute)
    simulator.warm()
    run: Callable[[dict[str, Any]], dict[str, Any]] = simulator.run
    return run
