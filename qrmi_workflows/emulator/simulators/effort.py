"""How long a simulation in shots takes, and the refusal of one that takes too long.

A circuit whose shots all end in the same state is simulated once. Otherwise each shot is a
simulation of its own, a trajectory.
"""

from __future__ import annotations

import math
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.sampling import Engine, is_random

__all__ = ["require_affordable"]

MAX_SHOTS = 1_000_000
# Rough: with Aer 0.18, a shot of 115 gates on 12 qubits took 0.64 ms on a busy machine.
_SECONDS_PER_GATE = 1.5e-6
_SECONDS_PER_AMPLITUDE = 1.2e-9
# The iterations of a loop whose end depends on a measurement are not known.
_WHILE_ITERATIONS = 4


def require_affordable(circuit: Any, engine: Engine, shots: int, runs: int) -> None:
    """Check that the shots for a precision can be simulated within the limit.

    Args:
        circuit: The circuit.
        engine: How to simulate.
        shots: The number of shots; 0: exact values are asked for.
        runs: How often the shots are repeated, with other parameters or measured bases.

    Raises:
        SimulationError: They cannot.
    """
    limit = MAX_SHOTS
    if _has_trajectories(circuit, engine):
        seconds = _count_gates(circuit) * _gate_seconds(circuit.num_qubits, engine) * runs
        limit = max(1, min(MAX_SHOTS, int(engine.limit_seconds / seconds)))
    if 0 < shots <= limit:
        return
    needed = f"this precision takes {shots} shots" if shots else "exact values cannot be computed"
    raise SimulationError(
        f"{needed}, because the circuit's final state is random (noise, measurement, reset or "
        f"condition); at most {limit} shots are simulated within {engine.limit_seconds:g} s. Set "
        f"the precision to at least {_round_up(1 / math.sqrt(limit)):g}, or set "
        "simulation_seconds in the emulator's settings file."
    )


def _round_up(value: float) -> float:
    """Round up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


def _has_trajectories(circuit: Any, engine: Engine) -> bool:
    if engine.noise is not None and engine.method != "density_matrix":
        return True
    return is_random(circuit)


def _gate_seconds(qubits: int, engine: Engine) -> float:
    if engine.method in ("statevector", "density_matrix"):
        width = 2 * qubits if engine.method == "density_matrix" else qubits
        return float(_SECONDS_PER_GATE + _SECONDS_PER_AMPLITUDE * 2**width)
    return _SECONDS_PER_GATE * qubits


def _count_gates(circuit: Any) -> int:
    from qiskit.circuit import ForLoopOp, WhileLoopOp

    total = 1
    for instruction in circuit.data:
        operation = instruction.operation
        blocks = getattr(operation, "blocks", ())
        size = max(map(_count_gates, blocks), default=1)
        if isinstance(operation, ForLoopOp):
            size *= max(1, len(tuple(operation.params[0])))
        elif isinstance(operation, WhileLoopOp):
            size *= _WHILE_ITERATIONS
        total += size
    return total
