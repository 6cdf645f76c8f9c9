"""Bytes that are equal for equal circuits, in any process: what memoisation compares.

Neither of Qiskit's own forms will do: QPY holds names that Qiskit counts up, and OpenQASM 3 drops
the global phase.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from qiskit import QuantumCircuit
    from qiskit.circuit import Instruction
    from qiskit.quantum_info import SparsePauliOp

__all__ = ["identities"]

_LIBRARY = "qiskit.circuit.library"
_PLAIN = (f"{_LIBRARY}.standard_gates", f"{_LIBRARY}.generalized_gates.unitary")
_PLAIN_NAMES = frozenset({"measure", "reset", "barrier", "delay"})


def identities() -> Mapping[type, Callable[[Any], bytes]]:
    """Return how Qiskit's circuits and observables are identified; empty without Qiskit."""
    if find_spec("qiskit") is None:
        return {}
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp

    return {QuantumCircuit: circuit_identity, SparsePauliOp: observable_identity}


def circuit_identity(circuit: QuantumCircuit) -> bytes:
    """Identify a circuit by all that its result depends on, and by no name but its registers'.

    Circuits of control flow or classical expressions are identified by their QPY; with gates of
    their own as well, Qiskit writes that anew each time, so that they equal no other.
    """
    from qiskit import qpy

    try:
        return repr(_describe(circuit)).encode()
    except NotImplementedError:
        file = io.BytesIO()
        same = circuit.copy()
        same.name, same.metadata = "", {}
        qpy.dump(same, file)
        return file.getvalue()


def observable_identity(observable: SparsePauliOp) -> bytes:
    """Identify an observable by its labels and coefficients, in their order."""
    coefficients = [str(each) for each in observable.coeffs.tolist()]
    return repr((observable.paulis.to_labels(), coefficients)).encode()


def _describe(circuit: QuantumCircuit) -> list[Any]:
    if getattr(circuit, "num_vars", 0):
        raise NotImplementedError
    clbits = {bit: index for index, bit in enumerate(circuit.clbits)}
    qubits = {bit: index for index, bit in enumerate(circuit.qubits)}
    return [
        len(qubits),
        [(register.name, [clbits[bit] for bit in register]) for register in circuit.cregs],
        len(clbits),
        _value(circuit.global_phase),
        [parameter.name for parameter in circuit.parameters],
        [
            (
                _operation(each.operation),
                [qubits[bit] for bit in each.qubits],
                [clbits[bit] for bit in each.clbits],
            )
            for each in circuit.data
        ],
    ]


def _operation(operation: Instruction) -> list[Any]:
    params = [_value(each) for each in getattr(operation, "params", ())]
    kind = getattr(operation, "base_class", type(operation))
    plain = kind.__module__.startswith(_PLAIN) or operation.name in _PLAIN_NAMES
    if plain:
        control = getattr(operation, "ctrl_state", None)
        return [operation.name, params, control, getattr(operation, "unit", None)]
    if getattr(operation, "blocks", None) or getattr(operation, "definition", None) is None:
        raise NotImplementedError
    return [_describe(operation.definition)]


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, int | float | complex | np.number):
        return complex(value)
    return str(value)  # an expression of parameters
