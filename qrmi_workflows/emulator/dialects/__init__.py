"""The vendors' APIs that the emulator speaks: one file each, and one line here."""

from __future__ import annotations

import importlib

from qrmi_workflows.emulator.dialects.base import Dialect

__all__ = ["DIALECTS", "Dialect", "load_dialect"]

_HERE = "qrmi_workflows.emulator.dialects."
DIALECTS = {
    "alice-bob-felis": _HERE + "alice_bob_felis:AliceBobFelis",
    "ibm-quantum-compute-service": _HERE + "ibm_quantum_compute_service:QuantumComputeService",
    "ibm-quantum-system": _HERE + "ibm_quantum_system:QuantumSystem",
    "iqm-server": _HERE + "iqm_server:IQMServer",
    "pasqal-cloud": _HERE + "pasqal_cloud:PasqalCloud",
    "pasqal-local": _HERE + "pasqal_local:PasqalLocal",
}


def load_dialect(resource_type: str) -> Dialect:
    """Return the dialect of one of QRMI's resource types."""
    module, name = DIALECTS[resource_type].split(":")
    dialect: Dialect = getattr(importlib.import_module(module), name)()
    return dialect
