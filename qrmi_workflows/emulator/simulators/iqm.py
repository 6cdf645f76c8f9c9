"""Qiskit Aer behind IQM's QPUs: circuits of IQM's native operations, in JSON.

Angles and phases are in radians.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.sampling import derive_seed

__all__ = ["run", "warm"]


def warm() -> None:
    """Run a small circuit, so that the first task does not wait for imports."""
    measure = {"name": "measure", "locus": ["QB1"], "args": {"key": "m"}}
    request = {"circuits": [{"name": "warm", "instructions": [measure]}], "shots": 1}
    run({"request": json.dumps(request), "seed": 1})


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Run the circuits of one task.

    Args:
        work: `request` (the body of an IQM job of type `circuit`, as JSON text) and `seed`.

    Returns:
        `result` (the artifacts `measurements` and `measurement_counts`, as JSON text) and `logs`.

    Raises:
        SimulationError: The circuits cannot be simulated.
    """
    request = json.loads(work["request"])
    if work.get("noise"):
        raise SimulationError("noise is not emulated for IQM; set `noise = false`")
    shots = request["shots"]
    measurements = [
        _measure(circuit, shots, derive_seed(work["seed"], rank))
        for rank, circuit in enumerate(request["circuits"])
    ]
    counts = [_count(bits, shots) for bits in measurements]
    result = {"measurements": measurements, "measurement_counts": counts}
    return {"result": json.dumps(result), "logs": f"{len(measurements)} circuits, {shots} shots\n"}


def _measure(document: dict[str, Any], shots: int, seed: int) -> dict[str, list[list[int]]]:
    """Simulate one circuit, and return the bits of every shot by measurement key."""
    from qiskit_aer import AerSimulator

    circuit, registers = _build(document["instructions"])
    if not registers:
        raise SimulationError(f"the circuit {document.get('name')!r} measures nothing")
    result = AerSimulator().run(circuit, shots=shots, seed_simulator=seed, memory=True).result()
    if not result.success:
        raise SimulationError(f"the simulation failed: {result.status}")
    # Aer puts the last register first, and each register's highest bit first.
    rows = [text[::-1].split(" ") for text in result.get_memory()]
    return {
        key: [[int(bit) for bit in row[rank]] for row in rows] for rank, key in enumerate(registers)
    }


def _build(instructions: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    from qiskit import ClassicalRegister, QuantumCircuit

    names = dict.fromkeys(name for item in instructions for name in _locus(item))
    rank = {name: index for index, name in enumerate(names)}
    circuit, keys = QuantumCircuit(len(rank)), list[str]()
    for item in instructions:
        qubits = [rank[name] for name in _locus(item)]
        arguments = item.get("args") or {}
        match item.get("name"):
            case "prx":
                circuit.r(float(arguments["angle"]), float(arguments["phase"]), *qubits)
            case "cz":
                circuit.cz(*qubits)
            case "measure":
                register = ClassicalRegister(len(qubits), f"m{len(keys)}")
                circuit.add_register(register)
                circuit.measure(qubits, register)
                keys.append(str(arguments["key"]))
            case "reset":
                circuit.reset(qubits)
            case "barrier" | "delay":
                pass
            case other:
                raise SimulationError(
                    f"the operation {other!r} is not emulated; prx, cz, measure, reset, barrier "
                    "and delay are"
                )
    return circuit, keys


def _locus(item: dict[str, Any]) -> list[str]:
    return list(item.get("locus") or item.get("qubits") or [])


def _count(measurements: dict[str, list[list[int]]], shots: int) -> dict[str, Any]:
    keys = sorted(measurements)
    bitstrings = [
        "".join(str(bit) for key in keys for bit in measurements[key][shot])
        for shot in range(shots)
    ]
    return {"measurement_keys": keys, "counts": dict(Counter(bitstrings))}
