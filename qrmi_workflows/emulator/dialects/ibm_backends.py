"""How IBM Quantum Compute Service describes its backends."""

from __future__ import annotations

from typing import Any

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.device import Device

__all__ = ["backend_summary", "status_message", "status_name"]


def backend_summary(device: Device) -> dict[str, Any]:
    """Return a QPU's entry in the list of backends."""
    configuration = backend_document(device.settings.model, "conf")
    processor_type = configuration.get("processor_type") or {}
    return {
        "name": device.name,
        "status": {"name": status_name(device), "reason": status_message(device)},
        "is_simulator": False,
        "qubits": configuration["n_qubits"],
        "clops": None,
        "processor_type": {key: str(value) for key, value in processor_type.items()},
        "queue_length": device.unfinished,
        "wait_time_seconds": None,
    }


def status_name(device: Device) -> str:
    """Return a QPU's availability in the words of IBM's services: online, paused or offline.

    IBM's API has no other words, and says that the message may be about maintenance, but not which
    word comes with it. A client may take neither for online, so there is no `ServerSettings` for
    it; emulate the other one as `paused`.
    """
    words = {"reserved": "paused", "maintenance": "offline"}
    return words.get(device.availability, device.availability)


def status_message(device: Device) -> str:
    """Return what the service says about a QPU's availability beside its word for it."""
    return "maintenance" if device.availability == "maintenance" else ""
