"""Observables, as sums of Pauli terms on the qubits in use."""

from __future__ import annotations

from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit

__all__ = ["load_observables"]


def load_observables(observables: object, loaded: LoadedCircuit) -> Any:
    """Return the observables as an object array of `SparsePauliOp` on the qubits in use.

    Clients send observables on the whole device. An idle qubit is in state 0, where Z is 1 and X
    and Y are 0.

    Raises:
        SimulationError: The value is not an array of observables, or one does not cover all qubits
            in use.
    """
    import numpy as np
    from qiskit.primitives.containers import ObservablesArray

    try:
        array = ObservablesArray.coerce(observables)
    except Exception as error:
        raise SimulationError(f"observables {observables!r:.120} are invalid: {error}") from error
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        item = array[index] if index else array[()]
        result[index] = _restrict(_pauli_sum(item), loaded)
    return result


def _pauli_sum(item: Any) -> Any:
    from qiskit.quantum_info import SparseObservable, SparsePauliOp

    if not isinstance(item, dict):
        item = item.tolist()
    observable = SparseObservable.from_list(list(item.items()))
    return SparsePauliOp.from_sparse_observable(observable)


def _restrict(operator: Any, loaded: LoadedCircuit) -> Any:
    from qiskit.quantum_info import SparsePauliOp

    width = operator.num_qubits
    if width <= max(loaded.active):
        raise SimulationError(
            f"an observable has {width} qubits, but the circuit uses qubit "
            f"{max(loaded.active)}; observables must span the device"
        )
    active = list(loaded.active)
    idle = [qubit for qubit in range(width) if qubit not in set(active)]
    in_zero = ~operator.paulis.x[:, idle].any(axis=1)
    if not in_zero.any():
        return SparsePauliOp("I" * len(loaded.active), [0.0])
    labels = [_label(pauli, active) for pauli in operator.paulis[in_zero]]
    return SparsePauliOp(labels, operator.coeffs[in_zero]).simplify()


def _label(pauli: Any, active: list[int]) -> str:
    text = pauli.to_label()[::-1]
    return "".join(text[qubit] for qubit in reversed(active))
