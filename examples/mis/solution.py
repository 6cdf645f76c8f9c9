"""Compare the largest independent set that the QPU found with the exact one, and plot it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antennas import EDGES, SITES, exact, largest

from qrmi_workflows import QuantumResult


def solution(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the largest independent set among the samples, and its share of them."""
    found = largest(counts)
    return {
        "found": found,
        "size": found.count("1"),
        "exact_size": exact().count("1"),
        "share": counts.get(found, 0) / sum(counts.values()),
    }


def plot(chosen: str, path: Path) -> None:
    """Plot the antennas: those within reach are joined, the chosen ones filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=f"{chosen.count('1')} antennas that can share a channel", aspect="equal")
    axes.axis("off")
    for edge in EDGES:
        axes.plot(*zip(*(SITES[site] for site in edge), strict=True), color="0.8", zorder=1)
    x, y = zip(*SITES, strict=True)
    colours = ["tab:blue" if bit == "1" else "white" for bit in chosen]
    axes.scatter(x, y, s=300, c=colours, edgecolors="black", zorder=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    answer = solution(QuantumResult.load(rule.input[0]).counts())
    Path(rule.output[0]).write_text(json.dumps(answer, indent=1), encoding="utf-8")
    plot(answer["found"], Path(rule.output[1]))
