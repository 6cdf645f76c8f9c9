"""Observables and their expectation values.

Shot noise is that of a device that measures every Pauli term in 1 / precision² shots, as IBM's
estimator does: each term's mean is drawn from a binomial distribution. At precision 0 the values
are exact. With a backend's noise, the terms are measured in shots of the noisy circuit, including
readout errors, with at most a million shots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit

__all__ = ["Plan", "estimate", "load_observables"]

TRAJECTORIES = 4096
NOISY_SHOTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to simulate, and how precisely.

    Attributes:
        method: Aer's simulation method.
        noise: Aer's noise model, or `None`.
        precision: The standard error of a term with coefficient 1; 0: exact values.
        seed: The seed of the shot noise.
    """

    method: str
    noise: Any
    precision: float
    seed: int


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


def estimate(loaded: LoadedCircuit, bindings: Any, observables: Any, plan: Plan) -> Any:
    """Return the `PubResult` of one estimator PUB.

    Args:
        loaded: The circuit.
        bindings: The values of its parameters, a `BindingsArray` of any shape.
        observables: An array of `SparsePauliOp`, of a shape that broadcasts with the bindings'.
        plan: How to simulate, and how precisely.

    Raises:
        SimulationError: The shapes do not broadcast, or the simulation failed.
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
    means, shots = _means(loaded, bindings, labels, plan)
    sets = np.broadcast_to(np.arange(bindings.size).reshape(bindings.shape), shape)
    operators = np.broadcast_to(observables, shape)
    random = np.random.default_rng(plan.seed)
    evs, stds = np.zeros(shape), np.zeros(shape)
    for index in np.ndindex(shape):
        operator: Any = operators[index]
        terms = np.array([means[label][sets[index]] for label in operator.paulis.to_labels()])
        if shots and plan.noise is None:
            terms = 2 * random.binomial(shots, (1 + terms) / 2) / shots - 1
        coefficients = operator.coeffs.real
        evs[index] = coefficients @ terms
        if shots:
            stds[index] = np.sqrt((coefficients**2 * (1 - terms**2) / shots).sum())
    data = DataBin(evs=evs, stds=stds, ensemble_standard_error=stds.copy(), shape=shape)
    metadata = {"target_precision": plan.precision, "shots": shots}
    return PubResult(data, metadata=metadata | {"circuit_metadata": loaded.circuit.metadata or {}})


def _means(
    loaded: LoadedCircuit, bindings: Any, labels: list[str], plan: Plan
) -> tuple[dict[str, Any], int]:
    """Return each Pauli term's mean for each set of values, and the number of shots (0: exact)."""
    import numpy as np

    requested = int(np.ceil(plan.precision**-2.0)) if plan.precision > 0 else 0
    if plan.noise is None:
        return _exact_means(loaded, bindings, labels, plan), requested
    limit = NOISY_SHOTS if plan.method == "density_matrix" else TRAJECTORIES
    shots = min(requested or limit, limit)
    return _measured_means(loaded, bindings, labels, plan, shots), shots


def _exact_means(
    loaded: LoadedCircuit, bindings: Any, labels: list[str], plan: Plan
) -> dict[str, Any]:
    import numpy as np
    from qiskit.quantum_info import Pauli
    from qiskit_aer import AerSimulator

    circuit = loaded.circuit.copy()
    for label in labels:
        circuit.save_expectation_value(Pauli(label), circuit.qubits, label=label)
    binds: list[dict[Any, list[float]]] = [{}]
    if loaded.parameters:
        values = bindings.as_array(loaded.parameters).reshape(-1, len(loaded.parameters))
        binds = [{item: values[:, rank].tolist() for rank, item in enumerate(loaded.parameters)}]
    # With a measurement in the circuit, Aer averages over shots.
    shots = TRAJECTORIES if "measure" in circuit.count_ops() else 1
    result = (
        AerSimulator(method=plan.method)
        .run(circuit, shots=shots, seed_simulator=plan.seed, parameter_binds=binds)
        .result()
    )
    if not result.success:
        raise SimulationError(f"the simulation failed: {result.status}")
    means = [result.data(rank) for rank in range(len(result.results))]
    # A circuit without parameters gives one value for all sets; rounding may exceed ±1.
    return {
        label: np.clip(np.resize([item[label].real for item in means], bindings.size), -1, 1)
        for label in labels
    }


def _measured_means(
    loaded: LoadedCircuit, bindings: Any, labels: list[str], plan: Plan, shots: int
) -> dict[str, Any]:
    import numpy as np
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit.quantum_info import PauliList
    from qiskit_aer.primitives import SamplerV2

    sampler = SamplerV2(
        seed=plan.seed,
        options={"backend_options": {"method": plan.method, "noise_model": plan.noise}},
    )
    means: dict[str, Any] = {}
    for group in PauliList(labels).group_commuting(qubit_wise=True):
        circuit = _append_measurement(loaded.circuit, group)
        bits = sampler.run([SamplerPub(circuit, bindings, shots)]).result()[0].data.measured
        for label in group.to_labels():
            diagonal = "".join("I" if letter == "I" else "Z" for letter in label)
            means[label] = np.ravel(bits.expectation_values(diagonal))
    return means


def _append_measurement(circuit: Any, group: Any) -> Any:
    """Append a measurement of qubit-wise commuting Pauli terms, in gates native to IBM's QPUs."""
    from qiskit import ClassicalRegister

    measured = circuit.copy()
    register = ClassicalRegister(circuit.num_qubits, "measured")
    measured.add_register(register)
    for qubit in range(circuit.num_qubits):
        in_x, in_z = group.x[:, qubit].any(), group.z[:, qubit].any()
        if in_x and not in_z:
            measured.rz(math.pi / 2, qubit)
        if in_x:
            measured.sx(qubit)  # maps Y to Z, and after the rotation above, X to Z
        measured.measure(qubit, register[qubit])
    return measured


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
