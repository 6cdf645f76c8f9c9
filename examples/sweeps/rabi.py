"""Measure Rabi oscillations of one, two and three atoms that block each other, in Pulser.

Atoms within the blockade radius share one excitation, so the laser drives N of them √N times as
fast as one (Gaëtan et al., Nature Physics 5, 115 (2009)). Each number of atoms is one app call in
the block, and each pulse duration is one task in that call's batch.

    qpu target FRESNEL -o fresnel.json
    python rabi.py fresnel.json -o rabi.json
"""

from __future__ import annotations

import argparse
import json
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from pulser import Pulse, Register, Sequence
from pulser.abstract_repr import deserialize_device
from pulser.devices import Device
from scipy.optimize import curve_fit

from parsl_ext import qpu_app, qpu_config

RABI_FREQUENCY = pi  # rad/µs, of one atom: the blockade radius is then 8 µm
SPACING = 5.0  # µm
DURATIONS = list(range(100, 1700, 200))  # ns


@qpu_app
def excitation(sequence: Sequence, durations: list[int], runs: int, *, lease: Any) -> list[float]:
    """Return how often an atom was excited after each duration. The app runs in the block."""
    jobs = [{"runs": runs, "variables": {"duration": duration}} for duration in durations]
    results = lease.pulser_backend(sequence).run(jobs, wait=True).results
    outcomes = [result.final_bitstrings for result in results]
    return [sum(n for bits, n in counts.items() if "1" in bits) / runs for counts in outcomes]


def pulse(atoms: int, device: Device) -> Sequence:
    """Return a resonant pulse of variable duration on atoms at the corners of a triangle."""
    corners = [(0.0, 0.0), (SPACING, 0.0), (SPACING / 2, SPACING * sqrt(3) / 2)]
    register = Register.from_coordinates(corners[:atoms], prefix="atom")
    if device.requires_layout:
        register = register.with_automatic_layout(device)
    sequence = Sequence(register, device)
    sequence.declare_channel("global", "rydberg_global")
    duration = sequence.declare_variable("duration", dtype=int)
    sequence.add(Pulse.ConstantPulse(duration, RABI_FREQUENCY, 0, 0), "global")
    sequence.measure()
    return sequence


def oscillation(atoms: int, excited: list[float]) -> dict[str, Any]:
    """Return the measured and the theoretical curve, and the speed-up that fits best."""
    times = np.array(DURATIONS) / 1000
    expected = sqrt(atoms) * RABI_FREQUENCY
    (fitted,), _ = curve_fit(curve, times, excited, p0=expected)
    return {
        "atoms": atoms,
        "durations": DURATIONS,
        "excited": excited,
        "theory": curve(times, expected).tolist(),
        "speed_up": float(fitted) / RABI_FREQUENCY,
    }


def curve(times: np.ndarray, frequency: float) -> np.ndarray:
    return np.sin(frequency * times / 2) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the QPU's target, from `qpu target`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--qpu", default="FRESNEL")
    parser.add_argument("--runs", type=int, default=500, help="number of runs of each pulse")
    parser.add_argument("--address", help="this machine's address as seen from the block")
    parser.add_argument("--local", action="store_true", help="run without Slurm")
    arguments = parser.parse_args()
    (description,) = json.loads(arguments.target.read_text(encoding="utf-8"))
    device = deserialize_device(description["specs"])
    config = qpu_config(
        arguments.qpu,
        local=arguments.local,
        address=arguments.address,
        run_dir=str(arguments.output.parent / "parsl"),
    )
    with parsl.load(config):
        calls = {n: excitation(pulse(n, device), DURATIONS, arguments.runs) for n in (1, 2, 3)}
        curves = [oscillation(atoms, call.result()) for atoms, call in calls.items()]
    arguments.output.write_text(json.dumps(curves, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
