"""The hydrogen example's mathematics, checked against PySCF, the literature and Aer."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyscf import fci, gto, scf
from qiskit import qasm3
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer.primitives import EstimatorV2
from qiskit_ibm_runtime.fake_provider import FakeFez

from qrmi_workflows import Payload
from qrmi_workflows.vendors.ibm import transpiler_target

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "h2"))
hydrogen, prepare, transpile, energies, step = map(
    import_module, ("hydrogen", "prepare", "transpile", "energies", "step")
)

BOND_LENGTHS = (0.4, 0.735, 1.5, 2.5)


@pytest.fixture(scope="module")
def molecules() -> list[dict[str, Any]]:
    return [prepare.molecule(length) for length in BOND_LENGTHS]


@pytest.fixture(scope="module")
def target() -> str:
    """Return the target of IBM's Heron `fez` as QRMI does: configuration and properties."""
    backend = FakeFez()
    folder = Path(backend.dirname)
    names = {"configuration": backend.conf_filename, "properties": backend.props_filename}
    return json.dumps({key: json.loads((folder / name).read_text()) for key, name in names.items()})


@pytest.mark.parametrize("bond_length", BOND_LENGTHS)
def test_the_exact_energy_is_full_configuration_interaction(bond_length: float) -> None:
    molecule = gto.M(atom=f"H 0 0 0; H 0 0 {bond_length}", basis="sto-3g", verbose=0)
    reference = fci.FCI(scf.RHF(molecule).run()).kernel()[0]
    assert hydrogen.exact(hydrogen.hamiltonian(bond_length)) == pytest.approx(reference, abs=1e-8)


def test_the_hamiltonian_has_the_published_coefficients() -> None:
    """Seeley, Richard, Love, J. Chem. Phys. 137, 224109 (2012), eq. 79: R = 0.7414 Å."""
    one, two, _ = hydrogen.integrals(0.7414)
    terms = dict(hydrogen.jordan_wigner(one, two).to_list())
    published = {
        "IIII": -0.81261,
        "IIIZ": 0.171201,
        "IIZI": -0.2227965,
        "IIZZ": 0.12054625,
        "IZIZ": 0.16862325,
        "ZIZI": 0.17434925,
        "ZIIZ": 0.165868,
    }
    assert len(terms) == 15
    assert {pauli: terms[pauli].real for pauli in published} == pytest.approx(published, abs=2e-5)
    exchange = [abs(value) for pauli, value in terms.items() if set(pauli) & set("XY")]
    assert exchange == pytest.approx([0.04532175] * 4, abs=2e-5)


def test_the_mapped_operators_anticommute_as_electrons_do() -> None:
    lower = [hydrogen.annihilation(orbital, 4).to_matrix() for orbital in range(4)]
    for p, a in enumerate(lower):
        for q, b in enumerate(lower):
            assert np.allclose(a @ b + b @ a, 0)
            assert np.allclose(a @ b.conj().T + b.conj().T @ a, np.eye(16) * (p == q))


@pytest.mark.parametrize("bond_length", BOND_LENGTHS)
def test_the_ansatz_reaches_the_ground_state_at_the_fitted_angle(bond_length: float) -> None:
    operator = hydrogen.hamiltonian(bond_length)

    def energy(angle: float) -> float:
        state = Statevector(hydrogen.ansatz().assign_parameters([angle]))
        return float(state.expectation_value(operator).real)

    fitted, angle = hydrogen.minimum([energy(angle) for angle in hydrogen.ANGLES])
    assert fitted == pytest.approx(hydrogen.exact(operator), abs=1e-10)
    assert energy(angle) == pytest.approx(fitted, abs=1e-10)


def test_the_state_at_angle_zero_is_the_hartree_fock_state() -> None:
    molecule = gto.M(atom="H 0 0 0; H 0 0 0.735", basis="sto-3g", verbose=0)
    state = Statevector(hydrogen.ansatz().assign_parameters([0.0]))
    energy = state.expectation_value(hydrogen.hamiltonian(0.735)).real
    assert energy == pytest.approx(scf.RHF(molecule).run().e_tot, abs=1e-8)


@pytest.mark.parametrize("phase", [-3.0, -0.2, 0.0, 1.0, 2.9])
def test_the_minimum_of_a_sinusoid_is_found_from_three_points(phase: float) -> None:
    values = [2.0 - 0.7 * np.cos(angle - phase) for angle in hydrogen.ANGLES]
    lowest, angle = hydrogen.minimum(values)
    assert (lowest, angle) == pytest.approx((1.3, phase))


def test_the_circuit_uses_only_gates_that_the_qpu_has(target: str) -> None:
    circuit = transpile.transpile(target)
    offered = transpiler_target(target)
    for item in circuit.data:
        qubits = tuple(circuit.find_bit(qubit).index for qubit in item.qubits)
        assert offered.instruction_supported(item.operation.name, qubits)
    assert circuit.count_ops()["cz"] == 3


def test_one_payload_gives_every_energy(molecules: list[dict[str, Any]], target: str) -> None:
    """Run the payload's QASM on Aer: one row for each molecule, one column for each angle."""
    payload = Payload.from_content(transpile.curve_payload(molecules, target, precision=1e-12))
    (text, observables, angles, precision), *other_pubs = payload.content["parameters"]["pubs"]
    circuit = qasm3.loads(text)
    width = circuit.num_qubits
    trimmed = [[_trim(terms, width) for terms in row] for row in observables]
    estimates = EstimatorV2().run([(circuit, trimmed, angles, precision)]).result()[0].data.evs
    assert (payload.program, other_pubs, estimates.shape) == (
        "estimator",
        [],
        (len(BOND_LENGTHS), 3),
    )
    states = energies.ground_states(molecules, estimates.tolist())
    assert [state["energy"] for state in states] == pytest.approx(
        [molecule["exact"] for molecule in molecules], abs=1e-8
    )


def test_the_exact_curve_passes_through_the_molecules(molecules: list[dict[str, Any]]) -> None:
    curve = prepare.prepare(BOND_LENGTHS)["curve"]
    between = np.interp(BOND_LENGTHS, curve["bond_lengths"], curve["exact"])
    assert between == pytest.approx([molecule["exact"] for molecule in molecules], abs=0.01)


def test_the_plot_is_a_png(molecules: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [[molecule["exact"] + 0.1] * 3 for molecule in molecules]
    states = energies.ground_states(molecules, rows)
    curve = {"bond_lengths": list(BOND_LENGTHS), "exact": [m["exact"] for m in molecules]}
    energies.plot(states, curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def _trim(terms: dict[str, float], width: int) -> SparsePauliOp:
    """Restrict an observable on the whole device to the qubits of the program."""
    assert all(set(pauli[:-width]) <= {"I"} for pauli in terms)
    return SparsePauliOp.from_list([(pauli[-width:], value) for pauli, value in terms.items()])


def test_three_steps_of_the_loop_reach_the_ground_state(target: str) -> None:
    """Evaluate the payloads' energies exactly: E(θ) = a + b cos θ + c sin θ."""
    operator = hydrogen.hamiltonian(0.735)
    angle = 0.0
    for _ in range(3):
        angles = [angle - step.WIDTH, angle, angle + step.WIDTH]
        states = [Statevector(hydrogen.ansatz().assign_parameters([each])) for each in angles]
        angle = step.next_angle(angles, [s.expectation_value(operator).real for s in states])
    state = Statevector(hydrogen.ansatz().assign_parameters([angle]))
    assert state.expectation_value(operator).real == pytest.approx(hydrogen.exact(operator))


def test_a_step_measures_around_its_angle_and_goes_down(target: str) -> None:
    payload = Payload.from_content(step.step(0.5, target, 0.735, 0.01)).content
    assert step.angles_of(payload) == pytest.approx([0.2, 0.5, 0.8])
    assert step.next_angle([0.2, 0.5, 0.8], [3.0, 3.0, 1.0]) == pytest.approx(1.1)
