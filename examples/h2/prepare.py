"""Prepare classically: compute the Hamiltonian of H2 at each bond length and the exact energies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydrogen import exact, hamiltonian


def prepare(bond_lengths: Sequence[float]) -> dict[str, Any]:
    """Return the Hamiltonian at each bond length, and the exact energy curve."""
    grid = np.geomspace(min(bond_lengths) - 0.1, max(bond_lengths) + 0.1, 50)
    return {
        "molecules": [molecule(length) for length in bond_lengths],
        "curve": {
            "bond_lengths": grid.tolist(),
            "exact": [exact(hamiltonian(length)) for length in grid],
        },
    }


def molecule(bond_length: float) -> dict[str, Any]:
    operator = hamiltonian(bond_length)
    terms = {pauli: coefficient.real for pauli, coefficient in operator.to_list()}
    return {"bond_length": bond_length, "hamiltonian": terms, "exact": exact(operator)}


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    document = prepare(rule.params.bond_lengths)
    Path(rule.output[0]).write_text(json.dumps(document, indent=1), encoding="utf-8")
