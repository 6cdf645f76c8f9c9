"""Pulser's simulation behind Pasqal's QPUs: a sequence of pulses on an array of atoms.

Runs in worker processes alone: it imports pulser.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["run", "run_sequence", "warm"]


def warm() -> None:
    """Import what the first task needs."""
    import pulser
    import pulser_simulation

    del pulser, pulser_simulation


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a sequence, or describe the device.

    Args:
        job: `program`: `sequence` or `specs`; `model`; `qpu`; for a sequence also `request` (JSON
            text with `sequence`, `runs`, `variables`), `seed` and `noise`.

    Returns:
        `result` (the counts of bitstrings, or the device, as JSON text) and `logs`.

    Raises:
        SimulationError: It cannot be simulated.
    """
    return run_sequence(job, _simulate)


def run_sequence(
    job: dict[str, Any], simulate: Callable[[Any, int, int, bool], dict[str, int]]
) -> dict[str, Any]:
    """Do what `run` does with another function that counts the outcomes of a sequence."""
    if job["program"] == "specs":
        return {"result": _specs(job["model"], job["qpu"]), "logs": ""}
    request = json.loads(job["request"])
    sequence = _load(request["sequence"], request.get("variables") or {})
    most = sequence.device.max_runs
    if most is not None and request["runs"] > most:
        raise SimulationError(
            f"{request['runs']} runs; {sequence.device.name} allows {most} at most"
        )
    counts = simulate(sequence, request["runs"], job["seed"], job["noise"])
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
    except Exception as error:  # pulser and jsonschema raise many types
        reason = getattr(error, "message", None) or str(error)
        raise SimulationError(f"the sequence is not valid: {reason}") from error
    return sequence


def _noise(sequence: Any) -> Any:
    """Return a Fresnel machine's noise: detection errors, and for Rydberg states their decay.

    The values are those of the device specification in the tests of Pasqal's own warden,
    https://github.com/pasqal-io/warden (tests/api/test_qpu.py); rates are per microsecond.
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
        np.random.seed(seed)  # pulser draws from the global generator
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
