"""Quantum computers in HPC workflows: leases, tasks and results, built on QRMI.

Import the public names from here. Each is loaded on first use, so a plugin that needs only the
errors does not load a vendor's client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrmi_workflows.errors import QPUError
    from qrmi_workflows.lease.lease import Lease
    from qrmi_workflows.lease.open import LeaseSet, open_lease
    from qrmi_workflows.lease.stage import Stage, find_stage
    from qrmi_workflows.payloads import Payload
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.stages.closing import close_stage
    from qrmi_workflows.stages.opening import open_stage
    from qrmi_workflows.tasks.limits import Coalesce

__all__ = [
    "Coalesce",
    "Lease",
    "LeaseSet",
    "Payload",
    "QPUError",
    "QuantumResult",
    "Stage",
    "close_stage",
    "find_stage",
    "open_lease",
    "open_stage",
]

_HOMES = {
    "Coalesce": "tasks.limits",
    "Lease": "lease.lease",
    "LeaseSet": "lease.open",
    "Payload": "payloads",
    "QPUError": "errors",
    "QuantumResult": "results",
    "Stage": "lease.stage",
    "close_stage": "stages.closing",
    "find_stage": "lease.stage",
    "open_lease": "lease.open",
    "open_stage": "stages.opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
