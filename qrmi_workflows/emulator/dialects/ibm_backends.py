"""How IBM Quantum Compute Service describes its backends."""

from __future__ import annotations

from typing import Any

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.device import Device

__all__ = ["backend_summary", "status_name"]


def backend_summary(device: Device) -> dict[str, Any]:
    """Return a QPU's entry in the list of backends."""
    configuration = backend_document(device.settings.model, "conf")
    processor_type = configuration.get("processor_type") or {}
    return {
        "name": device.name,
        "status": {"name": status_name(device), "reason": ""},
        "is_simulator": False,
        "qubits": configuration["n_qubits"],
        "clops": None,
        "processor_type": {key: str(value) for key, value in processor_type.items()},
        "queue_length": device.queue_length + device.busy_lanes,
        "wait_time_seconds": None,
    }


def status_name(device: Device) -> str:
    """Return a QPU's availability in the service's words."""
    return "paused" if device.availability == "reserved" else device.availability
