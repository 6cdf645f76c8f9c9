"""The nitrogen molecule: its Hamiltonian in an active space, and its energy by classical methods.

Of the 18 orbitals that 6-31G gives N2, the two lowest stay full (the atoms' 1s shells) and the six
highest stay empty. That leaves 10 electrons in 10 orbitals: 63,504 determinants, few enough for the
exact answer. Energies are in hartree, bond lengths in ångström.
"""

from pathlib import Path
from typing import Any

import numpy as np

CHEMICAL_ACCURACY = 1.6e-3
"""1 kcal/mol, in hartree."""

ELECTRONS, ORBITALS, FROZEN = 10, 10, 2


def nitrogen(bond_length: float) -> dict[str, Any]:
    """Return what the circuit and the diagonalisation need, as arrays.

    Returns:
        `one`, `two`: the integrals h[p,q] and (pq|rs) over the active orbitals; `core`: the energy
        of the nuclei and frozen electrons; `pairs[i,a]`: the CCSD amplitude with which both
        electrons of orbital i are in orbital a; and the energies `hartree_fock`, `ccsd`, `exact`.
    """
    from pyscf import ao2mo, cc, fci, gto, lib, mcscf, scf

    with lib.with_omp_threads(1):  # more threads are slower on so small a problem
        # Symmetry keeps degenerate orbitals from mixing at random.
        molecule = gto.M(
            atom=f"N 0 0 0; N 0 0 {bond_length}", basis="6-31g", symmetry="D2h", verbose=0
        )
        field = scf.RHF(molecule).run()
        space = mcscf.CASCI(field, ORBITALS, ELECTRONS)
        one, core = space.get_h1eff()
        two = ao2mo.restore(1, space.get_h2eff(), ORBITALS)
        exact, _ = fci.direct_spin1.kernel(one, two, ORBITALS, ELECTRONS, ecore=core)
        inactive = [*range(FROZEN), *range(FROZEN + ORBITALS, molecule.nao)]
        clusters = cc.CCSD(field, frozen=inactive).run()
    return {
        "one": one,
        "two": two,
        "core": core,
        "pairs": np.einsum("iiaa->ia", clusters.t2),
        "hartree_fock": field.e_tot,
        "ccsd": clusters.e_tot,
        "exact": exact,
    }


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    np.savez(Path(rule.output[0]), **nitrogen(rule.params.bond_length))
