"""Observables and their expectation values. Runs in worker processes alone.

The shot noise is that of a device that measures every Pauli term in as many shots as the
precision asks for (1 / precision², as IBM's estimator does): each term's mean is drawn from its
binomial distribution. Without a precision the values are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit

__all__ = ["estimate", "load_observables"]

TRAJECTORIES = 4096


def load_observables(observables: object, loaded: LoadedCircuit) -> Any:
    """Return an object array of `SparsePauliOp` on the qubits in use.

    Observables span the whole device; a qubit that the circuit leaves idle is in state 0, where Z
    is 1 and X and Y are 0.

    Raises:
        SimulationError: They are no observables, or narrower than the circuit's qubits in use.
    """
    import numpy as np
    from qiskit.primitives.containers import ObservablesArray

    try:
        array = ObservablesArray.coerce(observables)
    except Exception as error:
        raise SimulationError(f"observables {observables!r:.120}: {error}") from error
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        item = array[index] if index else array[()]
        result[index] = _restrict(_paulis(item), loaded)
    return result


def estimate(
    circuit: Any,
    parameters: Sequence[Any],
    bindings: Any,
    observables: Any,
    precision: float,
    method: str,
    seed: int,
) -> Any:
    """Return the `PubResult` of one estimator PUB.

    Args:
        circuit: The circuit on its qubits in use.
        parameters: Its parameters.
        bindings: Their values, a `BindingsArray` of any shape.
        observables: An array of `SparsePauliOp`; its shape broadcasts with the bindings'.
        precision: The standard error asked for, for a term of coefficient 1; 0 for exact values.
        method: Aer's simulation method.
        seed: What the shot noise is drawn with.
    """
    import numpy as np
    from qiskit.primitives.containers import DataBin, PubResult

    try:
        shape = np.broadcast_shapes(bindings.shape, observables.shape)
    except ValueError as error:
        raise SimulationError(
            f"parameter values of shape {bindings.shape} and observables of shape "
            f"{observables.shape} do not broadcast"
        ) from error
    labels = sorted({label for item in observables.flat for label in item.paulis.to_labels()})
    table = _expectations(circuit, parameters, bindings, labels, method, seed)
    sets = np.broadcast_to(np.arange(bindings.size).reshape(bindings.shape), shape)
    operators = np.broadcast_to(observables, shape)
    random = np.random.default_rng(seed)
    evs, stds = np.zeros(shape), np.zeros(shape)
    for index in np.ndindex(shape):
        operator: Any = operators[index]
        terms = np.array([table[label][sets[index]] for label in operator.paulis.to_labels()])
        evs[index], stds[index] = _measure(operator.coeffs.real, terms, precision, random)
    data = DataBin(evs=evs, stds=stds, ensemble_standard_error=stds.copy(), shape=shape)
    return PubResult(
        data,
        metadata={"target_precision": precision, "circuit_metadata": circuit.metadata or {}},
    )


def _measure(coefficients: Any, terms: Any, precision: float, random: Any) -> tuple[float, float]:
    import numpy as np

    if precision <= 0:
        return float(coefficients @ terms), 0.0
    shots = int(np.ceil(precision**-2.0))
    means = 2 * random.binomial(shots, (1 + terms) / 2) / shots - 1
    variances = coefficients**2 * (1 - terms**2) / shots
    return float(coefficients @ means), float(np.sqrt(variances.sum()))


def _expectations(
    circuit: Any,
    parameters: Sequence[Any],
    bindings: Any,
    labels: list[str],
    method: str,
    seed: int,
) -> dict[str, Any]:
    import numpy as np
    from qiskit.quantum_info import Pauli
    from qiskit_aer import AerSimulator

    measured = circuit.copy()
    for label in labels:
        measured.save_expectation_value(Pauli(label), measured.qubits, label=label)
    binds: list[dict[Any, list[float]]] = [{}]
    if parameters:
        values = bindings.as_array(parameters).reshape(-1, len(parameters))
        binds = [{item: values[:, rank].tolist() for rank, item in enumerate(parameters)}]
    shots = TRAJECTORIES if "measure" in circuit.count_ops() else 1
    backend = AerSimulator(method=method)
    result = backend.run(measured, shots=shots, seed_simulator=seed, parameter_binds=binds).result()
    if not result.success:
        raise SimulationError(f"the simulation failed: {result.status}")
    found = [result.data(rank) for rank in range(len(result.results))]
    count = bindings.size
    return {
        label: np.clip(np.resize([item[label].real for item in found], count), -1, 1)
        for label in labels
    }


def _paulis(item: Any) -> Any:
    from qiskit.quantum_info import SparseObservable, SparsePauliOp

    if not isinstance(item, dict):
        item = item.tolist()
    observable = SparseObservable.from_list(list(item.items()))
    return SparsePauliOp.from_sparse_observable(observable)


def _restrict(operator: Any, loaded: LoadedCircuit) -> Any:
    from qiskit.quantum_info import SparsePauliOp

    width = operator.num_qubits
    if width <= max(loaded.active) and len(loaded.active) > 1:
        raise SimulationError(
            f"an observable on {width} qubits is narrower than the circuit, which uses qubit "
            f"{max(loaded.active)}; it must span the device"
        )
    active = [qubit for qubit in loaded.active if qubit < width]
    idle = [qubit for qubit in range(width) if qubit not in set(active)]
    in_zero = ~operator.paulis.x[:, idle].any(axis=1)
    if not in_zero.any():
        return SparsePauliOp("I" * len(loaded.active), [0.0])
    kept, coefficients = operator.paulis[in_zero], operator.coeffs[in_zero]
    labels = [_label(pauli, active, len(loaded.active)) for pauli in kept]
    return SparsePauliOp(labels, coefficients).simplify()


def _label(pauli: Any, active: list[int], width: int) -> str:
    text = pauli.to_label()[::-1]
    return "".join(text[qubit] for qubit in active).ljust(width, "I")[::-1]
