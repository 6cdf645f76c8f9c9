"""Molecular hydrogen for a QPU: integrals, qubit Hamiltonian, ansatz and the exact answer.

STO-3G gives H2 two orbitals, hence four spin orbitals and four qubits: spin up on qubits 0 and 1,
spin down on 2 and 3. Energies are in hartree, bond lengths in ångström.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

CHEMICAL_ACCURACY = 1.6e-3
"""1 kcal/mol, in hartree."""

ANGLES = (0.0, 2 * np.pi / 3, 4 * np.pi / 3)
"""The energies at three evenly spaced angles determine it at every angle: see `minimum`."""


def hamiltonian(bond_length: float) -> SparsePauliOp:
    """Return the molecule's Hamiltonian, including the nuclear repulsion."""
    one, two, repulsion = integrals(bond_length)
    return (jordan_wigner(one, two) + SparsePauliOp("IIII", repulsion)).simplify()


def integrals(bond_length: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return h[p,q] and (pq|rs) over the Hartree-Fock orbitals, and the nuclear repulsion."""
    from pyscf import ao2mo, gto, lib, scf

    with lib.with_omp_threads(1):  # more threads are slower on so small a problem
        molecule = gto.M(atom=f"H 0 0 0; H 0 0 {bond_length}", basis="sto-3g", verbose=0)
        field = scf.RHF(molecule).run()
        one = field.mo_coeff.T @ field.get_hcore() @ field.mo_coeff
        two = ao2mo.restore(1, ao2mo.kernel(molecule, field.mo_coeff), len(one))
    return one, two, float(molecule.energy_nuc())


def jordan_wigner(one: np.ndarray, two: np.ndarray) -> SparsePauliOp:
    """Map the electrons to qubits: H = Σ h[p,q] a†p aq + ½ Σ (pq|rs) a†p a†r as aq."""
    orbitals = len(one)
    lower = [annihilation(i, 2 * orbitals) for i in range(2 * orbitals)]
    spins = (0, orbitals)  # the first spin orbital of each spin
    terms = [
        one[p, q] * lower[p + s].adjoint() @ lower[q + s]
        for p, q in product(range(orbitals), repeat=2)
        for s in spins
    ]
    terms += [
        0.5 * two[p, q, r, s] * lower[p + a].adjoint() @ lower[r + b].adjoint()
        @ lower[s + b] @ lower[q + a]
        for p, q, r, s in product(range(orbitals), repeat=4)
        for a, b in product(spins, repeat=2)
    ]  # fmt: skip
    return SparsePauliOp.sum(terms).simplify(atol=1e-10)


def annihilation(orbital: int, orbitals: int) -> SparsePauliOp:
    """Return a_p = Z…Z (X + iY)/2, where the Zs give electrons their exchange sign."""
    qubits = list(range(orbital + 1))
    strings = [("Z" * orbital + "X", qubits, 0.5), ("Z" * orbital + "Y", qubits, 0.5j)]
    return SparsePauliOp.from_sparse_list(strings, num_qubits=orbitals)


def ansatz() -> QuantumCircuit:
    """Return cos(θ/2)|0101⟩ + sin(θ/2)|1010⟩: both electrons in the lower or in the upper orbital.

    By symmetry, no other basis state contributes to the ground state, so one angle reaches it
    exactly. This is unitary coupled cluster with its only double excitation.
    """
    circuit = QuantumCircuit(4)
    circuit.ry(Parameter("θ"), 0)
    for qubit in range(3):
        circuit.cx(qubit, qubit + 1)
    circuit.x([0, 2])
    return circuit


def minimum(energies: Sequence[float]) -> tuple[float, float]:
    """Return the lowest energy over all angles, and its angle, from the energies at `ANGLES`.

    With one rotation, the energy is a + b cos θ + c sin θ, so three values determine it everywhere
    (Rotosolve: Ostaszewski, Grant, Benedetti, Quantum 5, 391 (2021)).
    """
    a = np.mean(energies)
    b, c = (2 / 3 * np.dot(energies, wave(ANGLES)) for wave in (np.cos, np.sin))
    return float(a - np.hypot(b, c)), float(np.arctan2(-c, -b))


def exact(operator: SparsePauliOp) -> float:
    """Return the lowest eigenvalue."""
    return float(np.linalg.eigvalsh(operator.to_matrix())[0])
