"""Sequences for Pulser's own devices on Pasqal's emulators, and the backends of Pasqal's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulser
import pytest
from emulator_clients import pi_pulse
from pasqal_cloud import RemoteEmuFreeBackend, RemoteMPSBackend
from pulser import NoiseModel
from pulser.backend import BackendConfig, BitStrings, EmulationConfig, Occupation
from pulser.backend.remote import BatchStatus

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import PayloadError, TaskFailedError


@pytest.fixture
def lease(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lease]:
    """Hold the emulator's `EMU_FREE`, which is named as Pasqal's own."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    with open_lease("EMU_FREE", step="pulser backends") as held:
        yield held


def excited(device: Any = pulser.AnalogDevice) -> pulser.Sequence:
    """Return a sequence that excites one atom: every run measures 1."""
    return pulser.Sequence.from_abstract_repr(pi_pulse(device))


def mostly_excited(results: Any, runs: int) -> bool:
    counts = results[0].final_bitstrings
    return sum(counts.values()) == runs and counts["1"] > 0.98 * runs


@pytest.mark.parametrize(
    "device", [pulser.AnalogDevice, pulser.DigitalAnalogDevice, pulser.MockDevice]
)
def test_a_sequence_for_pulsers_own_devices_runs_on_an_emulator(lease, device):
    backend = lease.pulser_backend(excited(device), config=BackendConfig(default_num_shots=60))

    assert mostly_excited(backend.run(wait=True), 60)
    assert mostly_excited(backend.run([{"runs": 40}], wait=True), 40)


def test_the_backend_of_pasqals_sdk_runs_through_the_lease(lease):
    """Its configuration says how many shots there are: 1000 by default, or an observable's."""
    connection = lease.pulser_connection()

    results = RemoteEmuFreeBackend(excited(), connection).run(wait=True)
    config = EmulationConfig(observables=[BitStrings(num_shots=30)])
    few = RemoteEmuFreeBackend(excited(), connection, config=config).run(wait=True)

    assert results.get_batch_status() is BatchStatus.DONE
    assert mostly_excited(results, 1000)
    assert mostly_excited(few, 30)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"noise_model": NoiseModel(p_false_pos=0.1)}, "noise_model"),
        ({"observables": [Occupation(evaluation_times=[1.0])]}, "observables"),
        ({"default_evaluation_times": [0.5, 1.0]}, "default_evaluation_times"),
        ({"with_modulation": True}, "with_modulation"),
    ],
)
def test_a_configuration_that_qrmi_does_not_pass_on_is_refused(lease, config, named):
    """Otherwise the counts would be those of another simulation."""
    options = {"observables": [BitStrings(num_shots=30)], **config}
    backend = RemoteEmuFreeBackend(
        excited(), lease.pulser_connection(), config=EmulationConfig(**options)
    )

    with pytest.raises(PayloadError, match=f"config: {named} would change the result"):
        backend.run(wait=True)


def test_a_backend_for_another_device_is_refused(lease):
    backend = RemoteMPSBackend(excited(), lease.pulser_connection())

    with pytest.raises(PayloadError, match=r"for device 'EMU_MPS'; under this lease, must be 'EM"):
        backend.run(wait=True)


def test_runs_without_a_number_are_refused(lease):
    with pytest.raises(PayloadError, match=r"must be a list of one or more objects with `runs`"):
        lease.pulser_backend(excited()).run([{}], wait=True)


def test_logs_and_results_are_found_by_the_batch_as_with_qrmis_connection(lease):
    """Upstream's example looks up the only job's result by the id of its batch."""
    connection = lease.pulser_connection()
    backend = RemoteEmuFreeBackend(excited(), connection)

    results = backend.run([{"runs": 20, "variables": []}], wait=True)

    available = results.get_available_results()[results.batch_id]
    assert list(available.get_tagged_results()) == ["bitstrings"]
    assert len(connection.get_batch_logs(batch_id=results.batch_id)) == 1
    assert connection.get_batch_logs() == connection.get_batch_logs(results.batch_id)


def too_short() -> dict[str, Any]:
    """Return a payload with a pulse that is shorter than the channel allows."""
    sequence = json.loads(pi_pulse(pulser.AnalogDevice))
    sequence["operations"][0]["amplitude"]["duration"] = 8
    sequence["operations"][0]["detuning"]["duration"] = 8
    return {"sequence": sequence, "job_runs": 21}


def test_a_failed_batch_says_why(lease):
    """QRMI does not pass on Pasqal's reason, but Pulser has the same one."""
    with pytest.raises(TaskFailedError, match=r"Pulser refuses the sequence: .*at least 16 ns"):
        lease.run(too_short())


def test_without_pulser_a_failed_batch_says_where_the_reason_is(lease, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.vendors.pasqal.find_spec", lambda _name: None)

    with pytest.raises(TaskFailedError, match="Look the batch up in Pasqal's portal"):
        lease.run(too_short())
