"""Map equal circuits to equal bytes in any process, for memoisation.

Qiskit 2.6 has no serialisation that does this: QPY contains the names that Qiskit generates for
circuits and gates (`circuit-165`), and OpenQASM 3 omits the global phase.
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
# Instructions that their name and parameters determine completely.
_SELF_DESCRIBING = (f"{_LIBRARY}.standard_gates", f"{_LIBRARY}.generalized_gates.unitary")
_SELF_DESCRIBING_NAMES = frozenset({"measure", "reset", "barrier", "delay"})


def identities() -> Mapping[type, Callable[[Any], bytes]]:
    """Return the functions that identify Qiskit's objects, by type; empty without Qiskit."""
    if find_spec("qiskit") is None:
        return {}
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp

    return {QuantumCircuit: circuit_identity, SparsePauliOp: observable_identity}


def circuit_identity(circuit: QuantumCircuit) -> bytes:
    """Identify a circuit by everything that affects its result.

    The names of circuits, quantum registers and custom gates do not matter. Circuits with control
    flow or classical expressions are an exception: they are identified by their QPY, which contains
    the names of registers and custom gates.
    """
    from qiskit import qpy

    try:
        return repr(_describe(circuit)).encode()
    except NotImplementedError:
        file = io.BytesIO()
        anonymous = circuit.copy()
        anonymous.name, anonymous.metadata = "", {}
        qpy.dump(anonymous, file)
        return file.getvalue()


def observable_identity(observable: SparsePauliOp) -> bytes:
    """Identify an observable by its labels and coefficients, in their order."""
    coefficients = [str(coefficient) for coefficient in observable.coeffs.tolist()]
    return repr((observable.paulis.to_labels(), coefficients)).encode()


def _describe(circuit: QuantumCircuit) -> list[Any]:
    """Describe a circuit in plain data.

    Raises:
        NotImplementedError: The circuit has control flow, classical expressions, or an instruction
            without a definition.
    """
    if getattr(circuit, "num_vars", 0):
        raise NotImplementedError
    clbits = {bit: index for index, bit in enumerate(circuit.clbits)}
    qubits = {bit: index for index, bit in enumerate(circuit.qubits)}
    return [
        len(qubits),
        [(register.name, [clbits[bit] for bit in register]) for register in circuit.cregs],
        len(clbits),
        _describe_parameter(circuit.global_phase),
        [parameter.name for parameter in circuit.parameters],
        [
            (
                _describe_operation(instruction.operation),
                [qubits[bit] for bit in instruction.qubits],
                [clbits[bit] for bit in instruction.clbits],
            )
            for instruction in circuit.data
        ],
    ]


def _describe_operation(operation: Instruction) -> list[Any]:
    # `base_class` is the library's class of a singleton gate such as `XGate`.
    gate_class = getattr(operation, "base_class", type(operation))
    is_self_describing = (
        gate_class.__module__.startswith(_SELF_DESCRIBING)
        or operation.name in _SELF_DESCRIBING_NAMES
    )
    if is_self_describing:
        params = [_describe_parameter(param) for param in getattr(operation, "params", ())]
        control = getattr(operation, "ctrl_state", None)
        return [operation.name, params, control, getattr(operation, "unit", None)]
    if getattr(operation, "blocks", None) or getattr(operation, "definition", None) is None:
        raise NotImplementedError
    return [_describe(operation.definition)]


def _describe_parameter(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, int | float | complex | np.number):
        return complex(value)
    return str(value)  # a `ParameterExpression`
