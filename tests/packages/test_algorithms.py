"""qiskit-algorithms' variational and sampling algorithms run on a lease's primitives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit.library import efficient_su2
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_algorithms import VQE, NumPyMinimumEigensolver
from qiskit_algorithms.gradients import ParamShiftEstimatorGradient
from qiskit_algorithms.optimizers import COBYLA
from qiskit_algorithms.state_fidelities import ComputeUncompute

from qrmi_workflows import Lease

HAMILTONIAN = SparsePauliOp.from_list([("ZZ", 1.0), ("XI", 0.5), ("IX", 0.5)])


def test_vqe_finds_the_smallest_eigenvalue(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    ansatz = transpile(efficient_su2(2, su2_gates=["ry"], reps=1))
    estimator = lease.estimator(options={"default_precision": 0.002})
    vqe = VQE(
        estimator, ansatz, COBYLA(maxiter=80, rhobeg=0.5), initial_point=[0.5, -0.5, 0.5, 0.5]
    )

    found = vqe.compute_minimum_eigenvalue(HAMILTONIAN)

    exact = NumPyMinimumEigensolver().compute_minimum_eigenvalue(HAMILTONIAN).eigenvalue
    assert exact == pytest.approx(-np.sqrt(2))
    assert found.eigenvalue == pytest.approx(exact, abs=0.05)


def test_a_gradient_by_parameter_shifts(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    ansatz = efficient_su2(2, su2_gates=["ry"], reps=1)
    values = [0.1, 0.4, -0.7, 1.2]

    def energy(point: np.ndarray) -> float:
        state = Statevector(ansatz.assign_parameters(point))
        return float(state.expectation_value(HAMILTONIAN).real)

    exact = [(energy(values + step) - energy(values - step)) / 2 for step in np.pi / 2 * np.eye(4)]
    native = transpile(ansatz)
    estimator = lease.estimator(options={"default_precision": 0.005})
    job = ParamShiftEstimatorGradient(estimator).run(
        [native], [HAMILTONIAN.apply_layout(native.layout)], [values]
    )

    assert job.result().gradients[0] == pytest.approx(exact, abs=5 * 0.005)


def test_a_fidelity_by_compute_and_uncompute(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    shots, angle = 20_000, 0.8
    bell, rotated = QuantumCircuit(2), QuantumCircuit(2)
    for circuit in (bell, rotated):
        circuit.h(0)
        circuit.cx(0, 1)
    rotated.ry(angle, 0)

    class Manager:
        """What the algorithms call a transpiler: an object with a method `run`."""

        def run(self, circuits: list[QuantumCircuit]) -> list[QuantumCircuit]:
            return [transpile(circuit) for circuit in circuits]

    fidelity = ComputeUncompute(
        lease.sampler(options={"default_shots": shots}), transpiler=Manager()
    )
    found = fidelity.run([bell], [rotated]).result().fidelities[0]

    exact = np.cos(angle / 2) ** 2
    assert found == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / shots))
