"""Load the circuits that clients send, and reduce them to the qubits in use.

A transpiled circuit is as wide as its QPU, for example 156 qubits, but uses only a few of them.
Only those are simulated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.openqasm import parse

__all__ = ["LoadedCircuit", "drop_leading_resets", "load_circuit", "parameter_sets"]

_INPUT = re.compile(r"^\s*input\s+[^;]*?([^\s;]+)\s*;", re.MULTILINE)
_IDLE = ("barrier", "delay")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCircuit:
    """A circuit without its idle qubits.

    Attributes:
        circuit: The reduced circuit.
        parameters: Its parameters, in the order in which clients send values.
        active: For each qubit of the reduced circuit, its index in the original circuit.
        width: The number of qubits of the original circuit.
    """

    circuit: Any
    parameters: tuple[Any, ...]
    active: tuple[int, ...]
    width: int


def load_circuit(source: object, *, sorts_parameters: bool = False) -> LoadedCircuit:
    """Load a circuit.

    Args:
        source: OpenQASM 3, or a `QuantumCircuit` that was decoded from QPY.
        sorts_parameters: Whether values are taken in the order of Qiskit's parameters, also for
            OpenQASM.

    Raises:
        SimulationError: The source is neither, or cannot be parsed.
    """
    from qiskit import QuantumCircuit

    if isinstance(source, str):
        circuit = parse(source)
        parameters = list(circuit.parameters)
        if not sorts_parameters:
            declared = {name: rank for rank, name in enumerate(_INPUT.findall(source))}
            parameters.sort(key=lambda item: declared.get(item.name, 0))
    elif isinstance(source, QuantumCircuit):
        circuit, parameters = source, list(source.parameters)
    else:
        raise SimulationError(f"a PUB's circuit must be OpenQASM 3 or QPY, not {source!r:.80}")
    reduced, active = _drop_idle_qubits(circuit)
    return LoadedCircuit(
        circuit=reduced,
        parameters=tuple(parameters),
        active=tuple(active),
        width=circuit.num_qubits,
    )


def parameter_sets(values: object, parameters: Sequence[Any]) -> Any:
    """Convert parameter values to a `BindingsArray`.

    Args:
        values: Nested lists whose last axis indexes the parameters, a mapping by name, or a
            `BindingsArray`.
        parameters: The circuit's parameters, in the order of that axis.

    Raises:
        SimulationError: The values do not match the parameters.
    """
    import numpy as np
    from qiskit.primitives.containers import BindingsArray

    if isinstance(values, BindingsArray):
        return values
    if isinstance(values, dict):
        return BindingsArray(values)
    try:
        array = np.asarray([] if values is None else values, dtype=float)
    except (TypeError, ValueError) as error:
        raise SimulationError(
            f"parameter values {values!r:.80} are not an array of numbers"
        ) from error
    count = len(parameters)
    if count == 0:
        return BindingsArray(shape=array.shape[:-1] if array.ndim > 1 else ())
    if count == 1 and (array.ndim == 0 or array.shape[-1] != 1):
        array = array[..., np.newaxis]
    if array.ndim == 0 or array.shape[-1] != count:
        raise SimulationError(
            f"parameter values of shape {array.shape} do not match the circuit's {count} "
            f"parameters; the last axis must have length {count}"
        )
    return BindingsArray({tuple(parameters): array})


def drop_leading_resets(circuit: Any) -> Any:
    """Return the circuit without resets of qubits that are still in their initial state."""
    remaining, used = circuit.copy_empty_like(), set[Any]()
    for instruction in circuit.data:
        name = instruction.operation.name
        if name == "reset" and not used.intersection(instruction.qubits):
            continue
        if name not in _IDLE:
            used.update(instruction.qubits)
        remaining.append(instruction, copy=False)
    return remaining


def _drop_idle_qubits(circuit: Any) -> tuple[Any, list[int]]:
    from qiskit import QuantumCircuit, QuantumRegister

    used = {
        circuit.find_bit(qubit).index
        for instruction in circuit.data
        if instruction.operation.name not in _IDLE
        for qubit in instruction.qubits
    }
    active = sorted(used) or [0]  # the simulators need at least one qubit
    reduced = QuantumCircuit(QuantumRegister(len(active), "q"), metadata=circuit.metadata)
    reduced.add_bits([bit for bit in circuit.clbits if not circuit.find_bit(bit).registers])
    for register in circuit.cregs:
        reduced.add_register(register)
    for variable in circuit.iter_declared_vars():
        reduced.add_uninitialized_var(variable)
    remaining = {circuit.qubits[index]: reduced.qubits[rank] for rank, index in enumerate(active)}
    for instruction in circuit.data:
        qubits = [remaining[qubit] for qubit in instruction.qubits if qubit in remaining]
        if len(qubits) == len(instruction.qubits):
            reduced.append(instruction.operation, qubits, instruction.clbits, copy=False)
        elif qubits and instruction.operation.name == "barrier":
            reduced.barrier(qubits)
    return reduced, active
