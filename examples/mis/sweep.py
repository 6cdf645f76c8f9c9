"""Build the payload: the antennas as atoms, and a detuning sweep that finds the largest set.

Atoms obey the antennas' rule by nature: two within the blockade radius are never both excited. A
slow sweep of the laser's detuning takes them from no excitation to as many as the rule allows
(Ebadi et al., Science 376, 1209 (2022)).
"""

import json
from math import pi
from pathlib import Path
from typing import Any

from antennas import SITES
from pulser import Pulse, Register, Sequence
from pulser.abstract_repr import deserialize_device
from pulser.devices import Device
from pulser.waveforms import InterpolatedWaveform

DURATION = 4000  # ns
RABI_FREQUENCY = 2 * pi  # rad/µs: the blockade radius is then 7.2 µm
DETUNING = 3 * pi  # rad/µs: between the interactions of distant and of neighbouring atoms


def sequence(device: Device) -> Sequence:
    """Return the sweep and a measurement: one bit for each atom, in the order of `SITES`."""
    register = Register.from_coordinates(SITES, prefix="antenna")
    if device.requires_layout:
        register = register.with_automatic_layout(device)
    sweep = Sequence(register, device)
    sweep.declare_channel("global", "rydberg_global")
    amplitude = InterpolatedWaveform(DURATION, [0, RABI_FREQUENCY, 0])
    detuning = InterpolatedWaveform(DURATION, [-DETUNING, 0, DETUNING])
    sweep.add(Pulse(amplitude, detuning, phase=0), "global")
    sweep.measure()
    return sweep


def sweep_payload(target: str, runs: int) -> dict[str, Any]:
    """Return the payload that samples the sweep on the device of a QPU's target."""
    (description,) = json.loads(target)
    device = deserialize_device(description["specs"])
    return {"sequence": json.loads(sequence(device).to_abstract_repr()), "job_runs": runs}


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    payload = sweep_payload(Path(rule.input[0]).read_text(encoding="utf-8"), rule.params.runs)
    Path(rule.output[0]).write_text(json.dumps(payload), encoding="utf-8")
