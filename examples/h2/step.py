"""Take one step towards the ground state: from three energies to the next three angles."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrogen import hamiltonian
from transpile import estimator_payload, place, transpile

from qrmi_workflows import QuantumResult

WIDTH = 0.3
"""The distance of the three angles, in radians."""


def angles_of(payload: Mapping[str, Any]) -> list[float]:
    """Return the angles of a payload."""
    (pub,) = payload["parameters"]["pubs"]
    return [angle for (angle,) in pub[2]]


def next_angle(angles: Sequence[float], energies: Sequence[float]) -> float:
    """Return the lowest point of the parabola through three equidistant points, or a step down."""
    (left, middle, right), angle = energies, angles[1]
    slope, curvature = (right - left) / 2, right - 2 * middle + left
    step = slope / curvature if curvature > 0 else 2.0 if slope > 0 else -2.0
    return angle - WIDTH * max(min(step, 2.0), -2.0)


def step(angle: float, target: str, bond_length: float, precision: float) -> dict[str, Any]:
    """Return the payload that measures the energy at three angles around one."""
    circuit = transpile(target)
    observable = place(hamiltonian(bond_length), circuit)
    angles = [angle - WIDTH, angle, angle + WIDTH]
    return estimator_payload(circuit, observable, angles, precision)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    angle = 0.0
    if rule.input.result:
        last = json.loads(Path(rule.input.payload[0]).read_text(encoding="utf-8"))
        energies, _ = QuantumResult.load(rule.input.result[0]).expectation_values()
        angle = next_angle(angles_of(last), energies)
    target = Path(rule.input.target).read_text(encoding="utf-8")
    payload = step(angle, target, rule.params.bond_length, rule.params.precision)
    Path(rule.output[0]).write_text(json.dumps(payload), encoding="utf-8")
