"""Qiskit Aer behind Alice & Bob's noiseless logical QPU: programs in QIR's textual form.

Only straight-line programs of the base profile (https://github.com/qir-alliance/qir-spec) are
supported, not branches on results.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["OPERATIONS", "run", "warm"]

# Operations whose QIR name is also the name of Qiskit's circuit method.
_GATES = (
    *("x", "y", "z", "h", "s", "t", "reset"),
    *("rx", "ry", "rz"),
    *("cz", "swap", "ccx"),
)
_ALIASES = {"cnot": "cx", "toffoli": "ccx"}
_ADJOINTS = {"s": "sdg", "t": "tdg"}
_BASES = {"x": ("h",), "y": ("sdg", "h"), "z": ()}
OPERATIONS = (
    *_GATES,
    "cx",
    "s_adj",
    "t_adj",
    "mx",
    "my",
    "mz",
    "prepare_x",
    "prepare_y",
    "prepare_z",
)

_CALL = re.compile(
    r"(?:%\S+ = )?(?:tail )?call \S+ @__quantum__(qis|rt)__(\w+?)(?:__(body|adj))?\((.*)\)"
)
_INDEX = re.compile(r"(?:%(?:Qubit|Result)\*|ptr) (?:null|inttoptr \(i64 (\d+) to \S+)")
_BRANCH = re.compile(r"\s*br (?:i1|label)")


def warm() -> None:
    """Run a small program, so that the first task does not wait for imports."""
    program = "call void @__quantum__qis__mz__body(%Qubit* null, %Result* null)"
    run({"request": json.dumps({"qir": program, "shots": 1}), "seed": 1})


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Run a program.

    Args:
        work: `request` (JSON text with `qir` and `shots`) and `seed`.

    Returns:
        `result` (CSV rows of recorded bits and their count) and `logs`.

    Raises:
        SimulationError: The program cannot be simulated.
    """
    from qiskit_aer import AerSimulator

    request = json.loads(work["request"])
    circuit, recorded = _build(request["qir"])
    shots = request["shots"]
    result = AerSimulator().run(circuit, shots=shots, seed_simulator=work["seed"]).result()
    if not result.success:
        raise SimulationError(f"the simulation failed: {result.status}")
    counts: Counter[str] = Counter()
    for text, count in result.get_counts().items():
        bits = text[::-1]
        counts["".join(bits[index] for index in recorded)] += count
    rows = "".join(f"{bits},{count}\n" for bits, count in sorted(counts.items()))
    logs = f"program on {circuit.num_qubits} qubits, {shots} shots\n"
    return {"result": rows, "logs": logs}


def _build(program: str) -> tuple[Any, list[int]]:
    """Return a program's circuit, and the indices of the results it records, in their order."""
    from qiskit import QuantumCircuit

    if any(_BRANCH.match(line) for line in program.splitlines()):
        raise SimulationError("programs that branch on a result are not emulated")
    calls = [match.groups() for match in map(_CALL.search, program.splitlines()) if match]
    indices = [[int(item or 0) for item in _INDEX.findall(call[3])] for call in calls]
    width = 1 + max((index for operands in indices for index in operands), default=0)
    circuit, recorded, measured = QuantumCircuit(width, width), list[int](), set[int]()
    for (kind, name, form, arguments), operands in zip(calls, indices, strict=True):
        if kind == "rt":
            recorded += operands if name == "result_record_output" else []
        elif name in ("m", "mx", "my", "mz"):
            _measure(circuit, name[1:] or "z", *operands)
            measured.add(operands[1])
        else:
            _apply(circuit, name, form, operands, arguments)
    if not measured:
        raise SimulationError("the program measures nothing")
    return circuit, recorded or sorted(measured)


def _measure(circuit: Any, basis: str, qubit: int, result: int) -> None:
    for gate in _BASES[basis]:
        getattr(circuit, gate)(qubit)
    circuit.measure(qubit, result)


def _apply(circuit: Any, name: str, form: str, qubits: list[int], arguments: str) -> None:
    gate = _ALIASES.get(name, name)
    if form == "adj" and gate in _ADJOINTS:
        gate = _ADJOINTS[gate]
    elif gate.startswith("prepare_") and gate[8:] in _BASES:
        _prepare(circuit, gate[8:], qubits[0], excited="i1 true" in arguments)
        return
    elif gate == "delay":
        return
    elif form == "adj" or (gate not in _GATES and gate != "cx"):
        raise SimulationError(
            f"the operation {name!r} is not emulated; {', '.join(OPERATIONS)} are"
        )
    angles = [_number(text) for text in re.findall(r"double (\S+?)(?:,|$)", arguments)]
    getattr(circuit, gate)(*angles, *qubits)


def _prepare(circuit: Any, basis: str, qubit: int, excited: bool) -> None:
    circuit.reset(qubit)
    if excited:
        circuit.x(qubit)
    for gate in reversed(_BASES[basis]):
        getattr(circuit, {"sdg": "s"}.get(gate, gate))(qubit)


def _number(text: str) -> float:
    """Parse a number in LLVM's notation: decimal, or the bits of a double in hexadecimal."""
    if text.startswith("0x"):
        value: float = struct.unpack(">d", bytes.fromhex(text[2:].zfill(16)))[0]
        return value
    return float(text)
