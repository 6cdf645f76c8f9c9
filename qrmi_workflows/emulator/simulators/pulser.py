"""pulser-simulation behind Pasqal's QPUs: sequences of pulses on an array of atoms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["run", "run_sequence", "warm"]


def warm() -> None:
    """Import Pulser, so that the first task does not wait for it."""
    import pulser
    import pulser_simulation

    del pulser, pulser_simulation


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Run a sequence, or describe the device.

    Args:
        work: `program` (`sequence` or `specs`), `model` and `qpu`; for a sequence also `request`
            (JSON text with `sequence`, `runs` and `variables`), `seed` and `noise`.

    Returns:
        `result` (the counts of bitstrings, or the device, as JSON text) and `logs`.

    Raises:
        SimulationError: The sequence cannot be simulated.
    """
    return run_sequence(work, _simulate)


def run_sequence(
    work: dict[str, Any], simulate: Callable[[Any, int, int, bool], dict[str, int]]
) -> dict[str, Any]:
    """Do the same as `run` with another simulator.

    Args:
        work: As for `run`.
        simulate: Counts the bitstrings of a sequence, given its number of runs, a seed and whether
            to add noise.
    """
    if work["program"] == "specs":
        return {"result": _specs(work["model"], work["qpu"]), "logs": ""}
    request = json.loads(work["request"])
    sequence = _load(request["sequence"], request.get("variables") or {})
    max_runs = sequence.device.max_runs
    if max_runs is not None and request["runs"] > max_runs:
        raise SimulationError(
            f"{request['runs']} runs; {sequence.device.name} allows at most {max_runs}"
        )
    counts = simulate(sequence, request["runs"], work["seed"], work["noise"])
    atoms = len(sequence.register.qubit_ids)
    logs = f"sequence of {atoms} atoms, {sequence.get_duration()} ns, {request['runs']} runs\n"
    return {"result": json.dumps(counts), "logs": logs}


def _specs(model: str, name: str) -> str:
    import pulser

    device = dataclasses.replace(getattr(pulser.devices, model), name=name)
    return str(device.to_abstract_repr())


def _load(text: str, variables: dict[str, Any]) -> Any:
    from pulser import Sequence

    try:
        sequence = Sequence.from_abstract_repr(text)
        if sequence.is_parametrized() or sequence.is_register_mappable():
            sequence = sequence.build(**variables)
    except Exception as error:  # Pulser and jsonschema raise many types
        reason = getattr(error, "message", None) or str(error)
        raise SimulationError(f"the sequence is not valid: {reason}") from error
    return sequence


def _noise(sequence: Any) -> Any:
    """Return the noise of a Fresnel machine: detection errors, and the decay of Rydberg states.

    The values are from the device specification in the tests of Pasqal's warden
    (https://github.com/pasqal-io/warden, tests/api/test_qpu.py). Rates are per microsecond.
    """
    from pulser import NoiseModel

    detection = {"state_prep_error": 0.0, "p_false_pos": 0.025, "p_false_neg": 0.1}
    if sequence.get_addressed_bases() != ("ground-rydberg",):
        return NoiseModel(**detection)
    return NoiseModel(**detection, relaxation_rate=0.01, dephasing_rate=2 / 9)


def _simulate(sequence: Any, runs: int, seed: int, noise: bool) -> dict[str, int]:
    import numpy as np
    from pulser_simulation import QutipEmulator

    try:
        np.random.seed(seed)  # Pulser draws from the global generator
        emulator = QutipEmulator.from_sequence(
            sequence,
            evaluation_times="Minimal",
            with_modulation=noise,
            noise_model=_noise(sequence) if noise else None,
        )
        counts = emulator.run().sample_final_state(N_samples=runs)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SimulationError(f"the sequence cannot be simulated: {error}") from error
    return {str(bits): int(count) for bits, count in counts.items()}
