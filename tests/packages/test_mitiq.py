"""mitiq extrapolates estimates from a lease's estimator to zero noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mitiq import Executor
from mitiq.zne import execute_with_zne
from mitiq.zne.inference import RichardsonFactory
from mitiq.zne.scaling import fold_global
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qrmi_workflows import Lease

PRECISION = 0.003


def mirror(layers: int = 3) -> QuantumCircuit:
    """Return a circuit of two qubits that does nothing: each layer, then its inverse."""
    layer = QuantumCircuit(2)
    layer.h(0)
    layer.cx(0, 1)
    layer.rx(0.4, 1)
    circuit = QuantumCircuit(2)
    for _ in range(layers):
        circuit = circuit.compose(layer).compose(layer.inverse())
    return circuit


@pytest.mark.parametrize("lease", ["ibm_noisy"], indirect=True)
def test_zero_noise_extrapolation_comes_closer_to_the_exact_value(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    """All scale factors are one task; the exact value of ⟨ZZ⟩ is 1."""
    tasks = []

    def estimates(circuits: list[QuantumCircuit]) -> list[float]:
        # Level 0 does not undo the folds.
        native = [transpile(circuit, level=0) for circuit in circuits]
        pubs = [(item, SparsePauliOp("ZZ").apply_layout(item.layout)) for item in native]
        job = lease.estimator(options={"default_precision": PRECISION}).run(pubs)
        tasks.append(job)
        return [float(pub.data.evs) for pub in job.result()]

    executor = Executor(estimates, max_batch_size=10)
    (noisy,) = estimates([mirror()])
    extrapolated = execute_with_zne(
        mirror(),
        executor,
        factory=RichardsonFactory(scale_factors=[1, 3, 5]),
        scale_noise=fold_global,
    )

    assert len(tasks) == 2
    assert 1 - noisy > 10 * PRECISION
    assert abs(1 - extrapolated) < (1 - noisy) / 2
