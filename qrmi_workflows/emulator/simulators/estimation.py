"""Expectation values of observables.

Where a circuit always ends in the same state, the expectation values are computed exactly, and the
mean of each Pauli term is then drawn from the binomial distribution of 1 / precision² shots; at
precision 0 the values are exact. Otherwise (noise, measurements, resets, conditions) the terms are
measured in 1 / precision² shots, as a QPU does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit
from qrmi_workflows.emulator.simulators.effort import require_affordable
from qrmi_workflows.emulator.simulators.sampling import Engine, is_random, run_sets, sample_bits

__all__ = ["estimate"]


def estimate(
    loaded: LoadedCircuit, bindings: Any, observables: Any, precision: float, engine: Engine
) -> Any:
    """Return the `PubResult` of one estimator PUB.

    Args:
        loaded: The circuit.
        bindings: The values of its parameters, a `BindingsArray` of any shape.
        observables: An array of `SparsePauliOp`, of a shape that broadcasts with the bindings'.
        precision: The standard error of a term with coefficient 1; 0: exact values.
        engine: How to simulate.

    Raises:
        SimulationError: The shapes do not broadcast, the simulation failed, or the precision takes
            too many shots.
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
    shots = int(np.ceil(precision**-2.0)) if precision > 0 else 0
    parts: _Measured | _Computed
    if engine.noise is not None or is_random(loaded.circuit):
        groups = _group(labels)
        runs = max(1, bindings.size * len(groups))
        require_affordable(loaded.circuit, engine, shots, runs)
        parts = _measure(loaded, bindings, groups, shots, engine)
    else:
        parts = _compute(loaded, bindings, labels, shots, engine)
    sets = np.broadcast_to(np.arange(bindings.size).reshape(bindings.shape), shape)
    operators = np.broadcast_to(observables, shape)
    evs, stds = np.zeros(shape), np.zeros(shape)
    for index in np.ndindex(shape):
        evs[index], stds[index] = parts.combine(operators[index], int(sets[index]))
    data = DataBin(evs=evs, stds=stds, ensemble_standard_error=stds.copy(), shape=shape)
    metadata = {"target_precision": precision, "shots": shots}
    return PubResult(data, metadata=metadata | {"circuit_metadata": loaded.circuit.metadata or {}})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """Exact means of Pauli terms, by label and set of parameter values."""

    means: dict[str, Any]
    shots: int
    random: Any

    def combine(self, operator: Any, rank: int) -> tuple[float, float]:
        """Return the estimate of a sum of terms and its standard error."""
        import numpy as np

        labels = operator.paulis.to_labels()
        terms = np.array([self.means[label][rank] for label in labels])
        coefficients = operator.coeffs.real
        if not self.shots:
            return float(coefficients @ terms), 0.0
        terms = 2 * self.random.binomial(self.shots, (1 + terms) / 2) / self.shots - 1
        variance = (coefficients**2 * (1 - terms**2)).sum() / self.shots
        return float(coefficients @ terms), math.sqrt(variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Pauli terms that were measured in the same shots, which correlates them.

    Attributes:
        labels: The terms.
        means: Their means, by set of parameter values.
        covariances: The covariances of their means, by set of parameter values.
    """

    labels: list[str]
    means: list[Any]
    covariances: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Means of Pauli terms over shots."""

    groups: list[_Group]

    def combine(self, operator: Any, rank: int) -> tuple[float, float]:
        """Return the estimate of a sum of terms and its standard error."""
        import numpy as np

        terms = dict(zip(operator.paulis.to_labels(), operator.coeffs.real, strict=True))
        mean = variance = 0.0
        for group in self.groups:
            coefficients = np.array([terms.get(label, 0.0) for label in group.labels])
            mean += float(coefficients @ group.means[rank])
            variance += float(coefficients @ group.covariances[rank] @ coefficients)
        return mean, math.sqrt(max(variance, 0.0))


def _compute(
    loaded: LoadedCircuit, bindings: Any, labels: list[str], shots: int, engine: Engine
) -> _Computed:
    import numpy as np
    from qiskit.quantum_info import Pauli

    circuit = loaded.circuit.copy()
    for label in labels:
        circuit.save_expectation_value(Pauli(label), circuit.qubits, label=label)
    result = run_sets(circuit, bindings, engine, shots=1)
    values = [result.data(rank) for rank in range(len(result.results))]
    means = {  # rounding may exceed ±1
        label: np.clip([item[label].real for item in values], -1, 1) for label in labels
    }
    return _Computed(means=means, shots=shots, random=np.random.default_rng(engine.seed))


def _measure(
    loaded: LoadedCircuit, bindings: Any, groups: Sequence[Any], shots: int, engine: Engine
) -> _Measured:
    measured = []
    for rank, paulis in enumerate(groups):
        circuit = _append_measurement(loaded.circuit, paulis)
        bits = sample_bits(circuit, bindings, shots, engine.part(rank))
        sets = [_statistics(paulis, rows[:, -loaded.circuit.num_qubits :]) for rows in bits]
        means, covariances = zip(*sets, strict=True)
        group = _Group(labels=paulis.to_labels(), means=list(means), covariances=list(covariances))
        measured.append(group)
    return _Measured(groups=measured)


def _statistics(paulis: Any, bits: Any) -> tuple[Any, Any]:
    """Return the means of Pauli terms over shots, and the covariances of these means."""
    import numpy as np

    support = (paulis.x | paulis.z).astype(np.float32)  # (terms, qubits)
    signs = 1 - 2 * ((support @ bits.astype(np.float32).T) % 2)  # (terms, shots)
    shots = signs.shape[1]
    means = signs.mean(axis=1, dtype=float)
    # The mean of the products of ±1, in floats of 64 bits: sums of 10**6 shots are exact in them.
    products = (signs.astype(float) @ signs.T.astype(float)) / shots
    return means, (products - np.outer(means, means)) / max(shots - 1, 1)


def _group(labels: list[str]) -> list[Any]:
    from qiskit.quantum_info import PauliList

    return list(PauliList(labels).group_commuting(qubit_wise=True)) if labels else []


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
