"""qiskit-addon-cutting runs the parts of a cut circuit on a lease's sampler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import PauliList, SparsePauliOp, Statevector
from qiskit_addon_cutting import (
    generate_cutting_experiments,
    partition_problem,
    reconstruct_expectation_values,
)

from qrmi_workflows import Lease

SHOTS = 4000
OBSERVABLES = PauliList(["ZZII", "IZZI", "IIZZ", "XIXI", "ZZZZ"])


def entangled() -> QuantumCircuit:
    """Return a circuit of four qubits whose middle gate is cut."""
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.ry(0.4 + 0.3 * qubit, qubit)
    circuit.cx(0, 1)
    circuit.cx(2, 3)
    circuit.rzz(0.9, 1, 2)
    circuit.rx(0.5, 1)
    circuit.ry(0.6, 2)
    return circuit


def test_the_parts_of_a_cut_circuit_give_its_expectation_values(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    """The two halves, of two qubits each, are two tasks."""
    problem = partition_problem(
        circuit=entangled(), partition_labels="AABB", observables=OBSERVABLES
    )
    experiments, coefficients = generate_cutting_experiments(
        circuits=problem.subcircuits, observables=problem.subobservables, num_samples=float("inf")
    )
    sampler = lease.sampler(options={"default_shots": SHOTS})
    jobs = {
        label: sampler.run([transpile(circuit) for circuit in circuits])
        for label, circuits in experiments.items()
    }
    results = {label: job.result() for label, job in jobs.items()}
    values = reconstruct_expectation_values(results, coefficients, problem.subobservables)

    state = Statevector(entangled())
    exact = [state.expectation_value(SparsePauliOp(str(pauli))).real for pauli in OBSERVABLES]
    overhead = np.prod([basis.overhead for basis in problem.bases])
    assert min(map(abs, exact)) > 0.1
    tolerance = 5 * np.sqrt(overhead / SHOTS)
    assert values == pytest.approx(exact, abs=tolerance)
