"""Check circuits against a QPU's instruction set (ISA): its qubits, gates and coupling.

IBM's services run only ISA circuits: https://quantum.cloud.ibm.com/docs/guides/transpile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm.openqasm import GateCall, Program

__all__ = [
    "FRACTIONAL_GATES",
    "Backend",
    "check_defined",
    "check_isa",
    "check_shots",
    "read_backend",
]

FRACTIONAL_GATES = frozenset({"rx", "rzz"})
"""IBM's gates of a continuous angle; https://quantum.cloud.ibm.com/docs/guides/fractional-gates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The limits in a backend's configuration.

    Attributes:
        num_qubits: The number of qubits.
        max_shots: The maximum number of shots per PUB; `None` if unknown.
        gates: The gates, each with the qubits on which it acts (`(0, 1)`); `None` means any.
    """

    num_qubits: int
    max_shots: int | None
    gates: Mapping[str, frozenset[tuple[int, ...]] | None]


@lru_cache(maxsize=8)
def read_backend(target: str) -> Backend | None:
    """Read the limits from a target; return `None` if its format is unknown.

    The keys are those of the backend configuration in IBM's REST API
    (https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest/tags/backends). A configuration in
    another format is not an error, because the vendor checks the circuit as well.
    """
    try:
        configuration = json.loads(target)["configuration"]
        names = [*configuration["basis_gates"], *configuration.get("supported_instructions", ())]
        gates: dict[str, frozenset[tuple[int, ...]] | None] = dict.fromkeys(names)
        for gate in configuration.get("gates", ()):
            if coupling_map := gate.get("coupling_map"):
                gates[gate["name"]] = frozenset(tuple(qubits) for qubits in coupling_map)
        return Backend(
            num_qubits=configuration["n_qubits"],
            max_shots=configuration.get("max_shots"),
            gates=gates,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def check_shots(shots: int | None, backend: Backend, where: str, qpu: str) -> None:
    """Refuse more shots than the QPU allows.

    Raises:
        PayloadError: There are too many shots.
    """
    limit = backend.max_shots
    if shots is not None and limit is not None and shots > limit:
        raise PayloadError(
            f"{where}: shots={shots}: must be at most {limit} on QPU {qpu!r}. Request fewer shots, "
            "or split them over several tasks."
        )


def check_isa(circuit: Program, backend: Backend, where: str, qpu: str) -> None:
    """Refuse a circuit that is not ISA for the QPU.

    Raises:
        PayloadError: The circuit uses a qubit or a gate that the QPU does not have.
    """
    used = {qubit for call in circuit.calls for qubit in call.qubits} | set(circuit.measured)
    highest = max((qubit for qubit in used if qubit is not None), default=0)
    if highest >= backend.num_qubits:
        raise PayloadError(
            f"{where} uses qubit {highest}; must be 0 to {backend.num_qubits - 1} on QPU {qpu!r}. "
            f"{_transpile_advice(qpu)}"
        )
    for call in circuit.calls:
        if reason := _reason_not_isa(call, backend):
            raise PayloadError(
                f"{where} is not ISA for QPU {qpu!r} (IBM's error 1517): {reason}. "
                f"{_transpile_advice(qpu)}"
            )


def check_defined(circuit: Program, where: str, qpu: str) -> None:
    """Refuse a circuit with a gate that it does not define, even if the QPU has the gate.

    Raises:
        PayloadError: A gate has no definition.
    """
    if circuit.undefined:
        name = circuit.undefined[0]
        raise PayloadError(
            f"{where} uses the gate {name!r} without a definition (IBM's error 1603); must define "
            'it. `include "stdgates.inc";` defines the standard gates, and Qiskit\'s '
            "`qasm3.dumps` writes the other definitions. " + _transpile_advice(qpu)
        )


def _reason_not_isa(call: GateCall, backend: Backend) -> str | None:
    """Return why the QPU lacks a gate, or `None` if it has the gate or this is unknown."""
    if call.name not in backend.gates:
        # Instructions without coupling are not gates (`delay`, `if_else`): do not propose them.
        coupled = sorted(name for name, places in backend.gates.items() if places)
        names = ", ".join(coupled or sorted(backend.gates))
        return f"the QPU has no gate {call.name!r}; must be one of: {names}"
    places = backend.gates[call.name]
    known = tuple(qubit for qubit in call.qubits if qubit is not None)
    if places is None or len(known) < len(call.qubits) or known in places:
        return None
    neighbours = sorted(place for place in places if place[0] == known[0])
    options = ", ".join(str(place) for place in neighbours) or "none"
    return (
        f"the QPU has no gate {call.name!r} on qubits {known}; with qubit {known[0]} first, must "
        f"be one of: {options}"
    )


def _transpile_advice(qpu: str) -> str:
    return (
        f"Transpile it for this QPU: `qpu target {qpu}` prints the target, and "
        "`qrmi_workflows.vendors.ibm.transpiler_target` converts it for Qiskit. If the QPU has "
        "changed since, add `--refresh`."
    )
