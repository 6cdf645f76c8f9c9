"""The configurations and properties of IBM's backends, from qiskit-ibm-runtime's snapshots."""

from __future__ import annotations

import functools
import json
from typing import Any

from qrmi_workflows.vendors.ibm.models import snapshot_file, snapshots

__all__ = ["FRACTIONAL_GATES", "backend_document", "fake_backends"]

FRACTIONAL_GATES = {"rx": "sx", "rzz": "cz"}
"""The fractional gates of Heron QPUs, each with a calibrated one on the same qubits."""


def fake_backends() -> tuple[str, ...]:
    """Return the names of the backends that have a snapshot, sorted.

    Raises:
        ConfigError: qiskit-ibm-runtime is not installed.
    """
    return tuple(snapshots())


@functools.cache
def backend_document(model: str, kind: str) -> dict[str, Any]:
    """Return a backend's configuration (kind `conf`) or properties (kind `props`)."""
    document: dict[str, Any] = json.loads(snapshot_file(model, kind).read_text(encoding="utf-8"))
    return _with_fractional_gates(document)


def _with_fractional_gates(document: dict[str, Any]) -> dict[str, Any]:
    """Add the gates of a continuous angle that a Heron QPU has.

    The service reports them, but the snapshots were made without, or with a part of them:
    https://quantum.cloud.ibm.com/docs/guides/fractional-gates. Each is as good as its calibrated
    counterpart.
    """
    is_configuration = "basis_gates" in document
    key = "name" if is_configuration else "gate"  # the properties have an entry for each place
    present = {gate[key] for gate in document["gates"]}
    missing = [name for name in FRACTIONAL_GATES if name not in present and "cz" in present]
    added = [
        _fractional_gate(name, gate, is_configuration=is_configuration)
        for name in missing
        for gate in document["gates"]
        if gate[key] == FRACTIONAL_GATES[name]
    ]
    changed = document | {"gates": [*document["gates"], *added]}
    for names in ("basis_gates", "supported_instructions"):
        if names in document:
            changed[names] = [*document[names], *missing]
    return changed


def _fractional_gate(
    name: str, counterpart: dict[str, Any], *, is_configuration: bool
) -> dict[str, Any]:
    if not is_configuration:
        place = "_".join(str(qubit) for qubit in counterpart["qubits"])
        return counterpart | {"gate": name, "name": f"{name}{place}"}
    definition = {
        "rx": "gate rx(theta) q { U(theta, -pi/2, pi/2) q; }",
        "rzz": "gate rzz(theta) a, b { CX a, b; U(0, 0, theta) b; CX a, b; }",
    }
    return counterpart | {"name": name, "parameters": ["theta"], "qasm_def": definition[name]}
