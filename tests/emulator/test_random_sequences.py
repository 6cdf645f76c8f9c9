"""Counts of random sequences agree with pulser-simulation, called directly, by a χ² test.

The limits are such that a right simulator fails with a probability below 1e-6 over all seeds.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pulser
import pytest
from pulser.devices import AnalogDevice, DigitalAnalogDevice, MockDevice
from pulser.waveforms import BlackmanWaveform, ConstantWaveform, RampWaveform
from pulser_simulation import QutipEmulator
from scipy.stats import chi2

from qrmi_workflows.emulator.simulators import pulser as simulator

RUNS = 1000
VARIABLES = {"amplitude": 3.0, "duration": 200}


def random_sequence(seed: int) -> pulser.Sequence:
    """Return a random sequence on two to four atoms, which may have variables."""
    random = np.random.default_rng(seed)
    device = (AnalogDevice, DigitalAnalogDevice, MockDevice)[seed % 3]
    atoms = int(random.integers(2, 5))
    spacing = random.uniform(5.5, 9)
    register = pulser.Register.rectangle(1, atoms, spacing=spacing, prefix="q")
    if device.requires_layout:
        register = register.with_automatic_layout(device)
    sequence = pulser.Sequence(register, device)
    is_digital = device is DigitalAnalogDevice and random.random() < 0.5
    if is_digital:
        sequence.declare_channel("local", "raman_local", initial_target="q0")
    else:
        sequence.declare_channel("global", "rydberg_global")
    for _ in range(int(random.integers(1, 4))):
        if is_digital:
            sequence.target(f"q{random.integers(atoms)}", "local")
        sequence.add(_pulse(random), "local" if is_digital else "global")
    if random.random() < 0.4:
        amplitude = sequence.declare_variable("amplitude")
        duration = sequence.declare_variable("duration", dtype=int)
        pulse = pulser.Pulse.ConstantPulse(duration, amplitude, 0.5, 0)
        sequence.add(pulse, "local" if is_digital else "global")
    sequence.measure("digital" if is_digital else "ground-rydberg")
    return sequence


def _pulse(random: Any) -> pulser.Pulse:
    duration = int(random.integers(25, 100)) * 4
    amplitude, detuning = random.uniform(0.5, 5), random.uniform(-5, 5)
    shape = random.choice(["constant", "ramp", "blackman"])
    if shape == "constant":
        wave = ConstantWaveform(duration, amplitude)
    elif shape == "ramp":
        wave = RampWaveform(duration, 0, amplitude)
    else:
        wave = BlackmanWaveform(duration, 0.42 * amplitude * duration / 1000)
    return pulser.Pulse(wave, RampWaveform(duration, -detuning, detuning), random.uniform(0, 6))


def check(seed: int) -> None:
    """Run a sequence as a worker does, and compare the counts with exact probabilities."""
    sequence = random_sequence(seed)
    variables = VARIABLES if sequence.is_parametrized() else {}
    request = {"sequence": sequence.to_abstract_repr(), "runs": RUNS, "variables": variables}
    work = {"program": "sequence", "request": json.dumps(request), "seed": seed, "noise": False}
    counts = json.loads(simulator.run(work)["result"])
    built = sequence.build(**variables) if variables else sequence
    final = QutipEmulator.from_sequence(built).run()[-1]
    expected = {bits: RUNS * share for bits, share in final.sampling_dist.items()}
    assert sum(counts.values()) == RUNS
    assert all(expected.get(bits, 0) > 1e-8 for bits in counts), "an impossible outcome"
    # The test holds for outcomes that are expected about 10 times; the rest is one outcome.
    pairs = [(counts.get(bits, 0), number) for bits, number in expected.items() if number >= 10]
    rest = RUNS - sum(number for _, number in pairs)
    if rest >= 10:
        pairs.append((RUNS - sum(count for count, _ in pairs), rest))
    distance = sum((count - number) ** 2 / number for count, number in pairs)
    assert len(pairs) == 1 or chi2.sf(distance, len(pairs) - 1) > 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_random_sequences(seed):
    """Global and local channels, three devices, several waveforms, with and without variables."""
    check(seed)


@pytest.mark.slow
def test_many_random_sequences():
    """The same for more seeds."""
    for seed in range(100, 200):
        check(seed)
