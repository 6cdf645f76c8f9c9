"""Diagonalise the Hamiltonian among the determinants that the QPU has sampled.

This is sample-based quantum diagonalisation (Robledo-Moreno et al., Science Advances 11, eadu9991
(2025)). Its energy is never below the exact one. Samples that noise has left with a wrong number of
electrons are repaired with the orbitals' mean occupancies, in a loop.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nitrogen import CHEMICAL_ACCURACY, ELECTRONS, ORBITALS
from qiskit.primitives import BitArray

from qrmi_workflows import QuantumResult

SAMPLES = (100, 300, 1000, 3000)
"""Numbers of samples at which the energy is computed, besides all of them."""


def diagonalise(molecule: Mapping[str, Any], samples: BitArray) -> tuple[float, int]:
    """Return the energy in the space that the samples span, and that space's dimension."""
    from pyscf import lib
    from qiskit_addon_sqd.fermion import diagonalize_fermionic_hamiltonian

    with lib.with_omp_threads(1):
        found = diagonalize_fermionic_hamiltonian(
            molecule["one"],
            molecule["two"],
            samples,
            samples_per_batch=300,
            norb=ORBITALS,
            nelec=(ELECTRONS // 2, ELECTRONS // 2),
            max_iterations=5,
            energy_tol=1e-5,
            occupancies_tol=1e-3,
            symmetrize_spin=True,
            seed=1,
        )
    return float(found.energy + molecule["core"]), found.sci_state.amplitudes.size


def convergence(molecule: Mapping[str, Any], samples: BitArray) -> list[dict[str, Any]]:
    """Return the energy and dimension for more and more of the samples."""
    counts = [count for count in SAMPLES if count < samples.num_shots]
    rows = []
    for count in (*counts, samples.num_shots):
        energy, dimension = diagonalise(molecule, samples.slice_shots(range(count)))
        rows.append({"samples": count, "determinants": dimension, "energy": energy})
    return rows


def summary(molecule: Mapping[str, Any], result: QuantumResult) -> dict[str, Any]:
    """Return the energies in hartree: by SQD, and by classical methods."""
    rows = convergence(molecule, result.to_primitive_result()[0].data.meas)
    classical = {name: float(molecule[name]) for name in ("hartree_fock", "ccsd", "exact")}
    return {"energy": rows[-1]["energy"], **classical, "convergence": rows}


def plot(rows: Sequence[Mapping[str, Any]], exact: float, ccsd: float, path: Path) -> None:
    """Plot the error of the energy over the number of samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title="N$_2$ in 6-31G, 10 electrons in 10 orbitals", xscale="log", yscale="log")
    axes.set(xlabel="samples from the QPU", ylabel="error / mHa")
    errors = [1000 * (row["energy"] - exact) for row in rows]
    axes.plot([row["samples"] for row in rows], np.maximum(errors, 1e-3), "o-", label="SQD")
    axes.axhline(1000 * (ccsd - exact), color="black", linestyle="--", label="CCSD")
    axes.axhline(1000 * CHEMICAL_ACCURACY, color="0.6", label="chemical accuracy")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    document = summary(np.load(rule.input[0]), QuantumResult.load(rule.input[1]))
    Path(rule.output[0]).write_text(json.dumps(document, indent=1), encoding="utf-8")
    plot(document["convergence"], document["exact"], document["ccsd"], Path(rule.output[1]))
