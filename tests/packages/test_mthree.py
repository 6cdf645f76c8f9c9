"""mthree corrects the readout errors of samples from a lease's sampler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mthree import M3Mitigation
from mthree.utils import final_measurement_mapping
from qiskit import QuantumCircuit

from qrmi_workflows import Lease

QUBITS, SHOTS = 4, 20_000
ANGLES = (0.3, 0.5, 0.7, 0.9)


def rotated() -> QuantumCircuit:
    """Return single-qubit rotations, for which ⟨ZZZZ⟩ is the product of their cosines."""
    circuit = QuantumCircuit(QUBITS)
    for qubit, angle in enumerate(ANGLES):
        circuit.ry(angle, qubit)
    circuit.measure_all()
    return circuit


def calibrations(circuit: QuantumCircuit) -> list[QuantumCircuit]:
    """Return circuits that prepare all zeros and all ones on the qubits that a circuit measures."""
    prepared = []
    for flipped in (False, True):
        calibration = circuit.copy_empty_like()
        for bit, qubit in final_measurement_mapping(circuit).items():
            if flipped:
                calibration.x(qubit)
            calibration.measure(qubit, bit)
        prepared.append(calibration)
    return prepared


def confusion(zeros: dict[str, int], ones: dict[str, int], bit: int) -> np.ndarray:
    """Return P(measured | prepared) of one bit."""
    wrong = sum(count for bits, count in zeros.items() if bits[-1 - bit] == "1") / SHOTS
    right = sum(count for bits, count in ones.items() if bits[-1 - bit] == "1") / SHOTS
    return np.array([[1 - wrong, 1 - right], [wrong, right]])


def parity(counts: dict[str, int]) -> float:
    return sum((-1) ** bits.count("1") * count for bits, count in counts.items()) / SHOTS


@pytest.mark.parametrize("lease", ["ibm_noisy"], indirect=True)
def test_a_parity_is_right_after_mitigation(
    lease: Lease, transpile: Callable[..., QuantumCircuit]
) -> None:
    circuit = transpile(rotated())
    circuits = [circuit, *calibrations(circuit)]
    job = lease.sampler(options={"default_shots": SHOTS}).run(circuits)
    counts, zeros, ones = (pub.data.meas.get_counts() for pub in job.result())

    mapping = final_measurement_mapping(circuit)
    matrices: list[np.ndarray | None] = [None] * circuit.num_qubits
    for bit, qubit in mapping.items():
        matrices[qubit] = confusion(zeros, ones, bit)
    mitigation = M3Mitigation()
    mitigation.cals_from_matrices(matrices)
    mitigated = mitigation.apply_correction(counts, mapping).expval()

    exact = float(np.prod(np.cos(ANGLES)))
    assert abs(parity(counts) - exact) > 0.02
    # Five standard errors, of which mitigation makes each larger.
    assert mitigated == pytest.approx(exact, abs=5 * 1.2 / np.sqrt(SHOTS))
