"""Compute the ground-state energies from the QPU's result, and plot them on the exact curve."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrogen import CHEMICAL_ACCURACY, minimum

from qrmi_workflows import QuantumResult


def ground_states(
    molecules: Sequence[Mapping[str, Any]], estimates: Sequence[Sequence[float]]
) -> list[dict[str, float]]:
    """Return each molecule's energy: the minimum over all angles, from its row of estimates."""
    return [
        {
            "bond_length": molecule["bond_length"],
            "energy": minimum(row)[0],
            "exact": molecule["exact"],
            "hartree_fock": row[0],  # the estimate at angle zero
        }
        for molecule, row in zip(molecules, estimates, strict=True)
    ]


def plot(states: Sequence[Mapping[str, float]], curve: Mapping[str, Any], path: Path) -> None:
    """Plot the energies on the exact curve, and their errors below."""
    from matplotlib.figure import Figure

    lengths = [state["bond_length"] for state in states]
    errors = [1000 * (state["energy"] - state["exact"]) for state in states]
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    upper.set(title="H$_2$ in STO-3G, estimated on a QPU", ylabel="energy / hartree")
    upper.plot(curve["bond_lengths"], curve["exact"], color="black", label="exact diagonalisation")
    upper.plot(lengths, [s["energy"] for s in states], "o", label="QPU, at the best angle")
    upper.plot(lengths, [s["hartree_fock"] for s in states], "x", label="QPU, Hartree-Fock state")
    upper.legend()
    bound = 1000 * CHEMICAL_ACCURACY
    lower.axhspan(-bound, bound, alpha=0.15, label="chemical accuracy")
    lower.plot(lengths, errors, "o")
    lower.set(xlabel="bond length / Å", ylabel="error / mHa")
    lower.legend(loc="upper right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    document = json.loads(Path(rule.input[0]).read_text(encoding="utf-8"))
    estimates, _ = QuantumResult.load(rule.input[1]).expectation_values()
    states = ground_states(document["molecules"], estimates)
    Path(rule.output[0]).write_text(json.dumps(states, indent=1), encoding="utf-8")
    plot(states, document["curve"], Path(rule.output[1]))
