"""Pasqal Cloud, through the real `qrmi` client."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pulser
import pytest
from emulator_clients import blockade, device_of, pi_pulse, wait
from qrmi import Payload, QrmiError, ResourceStatusCode, TaskStatus

from qrmi_workflows import open_lease


def test_every_method_of_a_resource_and_a_rydberg_blockade(qpu):
    """Every method works; two atoms within the blockade radius share one excitation."""
    resource = qpu("FRESNEL")
    assert resource.status().status == ResourceStatusCode.Online
    device = device_of(resource)
    assert device.name == "FRESNEL"
    token = resource.acquire()
    task = resource.task_start(Payload.PasqalCloud(sequence=blockade(device), job_runs=1000))
    assert wait(resource, task) == TaskStatus.Completed
    counter = json.loads(resource.task_result(task).value)["counter"]
    assert sum(counter.values()) == 1000
    assert counter.get("11", 0) + counter.get("00", 0) < 30
    assert abs(counter["01"] - counter["10"]) < 5 * np.sqrt(1000)
    assert resource.task_logs(task)
    resource.task_stop(task)
    resource.release(token)
    assert resource.metadata()["backend_name"] == "FRESNEL"


def test_noise_is_that_of_a_fresnel_machine(qpu):
    """After a pi pulse on one atom, every tenth excitation goes undetected."""
    resource = qpu("FRESNEL_CAN1")
    payload = Payload.PasqalCloud(sequence=pi_pulse(device_of(resource)), job_runs=2000)
    task = resource.task_start(payload)
    assert wait(resource, task) == TaskStatus.Completed
    counter = json.loads(resource.task_result(task).value)["counter"]
    assert 0.75 * 2000 < counter["1"] < 0.93 * 2000


def test_pasqals_own_simulator_is_an_extra(qpu):
    """If it is installed, it computes the blockade; otherwise the task fails."""
    resource = qpu("EMU_MPS")
    device = device_of(qpu("FRESNEL"))
    task = resource.task_start(Payload.PasqalCloud(sequence=blockade(device), job_runs=1000))
    if find_spec("emu_mps"):
        assert wait(resource, task) == TaskStatus.Completed
        counter = json.loads(resource.task_result(task).value)["counter"]
        assert counter.get("11", 0) + counter.get("00", 0) < 30
    else:
        assert wait(resource, task) == TaskStatus.Failed


def test_a_sequence_in_a_json_string_is_taken_or_refused_as_the_server_is_set(qpu):
    """Upstream's `task_runner` sends it so, for the files that upstream's generators write."""
    quoted = json.dumps(pi_pulse(pulser.AnalogDevice))
    payload = Payload.PasqalCloud(sequence=quoted, job_runs=10)

    free = qpu("EMU_FREE")
    assert wait(free, free.task_start(payload)) == TaskStatus.Completed
    with pytest.raises(QrmiError, match=r"400 Bad Request.*not a serialised Pulser sequence"):
        qpu("EMU_FRESNEL").task_start(payload)


@pytest.mark.parametrize("name", ["EMU_FREE", "EMU_FRESNEL"])
def test_our_own_payloads_suit_either_server(emulator, monkeypatch, tmp_path, name):
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    content = {"sequence": pi_pulse(pulser.AnalogDevice), "job_runs": 30}

    with open_lease(name) as lease:
        assert sum(lease.run(content).counts().values()) == 30


def test_more_runs_than_the_device_allows_are_refused(qpu):
    """The device allows 2,000 runs; a batch with more is not accepted."""
    resource = qpu("FRESNEL")
    payload = Payload.PasqalCloud(sequence=pi_pulse(device_of(resource)), job_runs=2001)
    with pytest.raises(QrmiError, match="'runs' must be at most 2000, not 2001"):
        resource.task_start(payload)


def test_an_invalid_sequence_fails(qpu):
    """Any JSON with a device is accepted, as by the vendor, but the task fails."""
    resource = qpu("FRESNEL")
    task = resource.task_start(Payload.PasqalCloud(sequence='{"device": {}}', job_runs=10))
    assert wait(resource, task) == TaskStatus.Failed


def test_bad_requests_are_rejected(qpu):
    """A sequence must be JSON, the number of runs positive, and the task known."""
    resource = qpu("FRESNEL")
    with pytest.raises(QrmiError, match=r"400 Bad Request.*not JSON"):
        resource.task_start(Payload.PasqalCloud(sequence="nonsense", job_runs=10))
    with pytest.raises(QrmiError, match=r"400 Bad Request.*at least 1"):
        resource.task_start(Payload.PasqalCloud(sequence='{"device": {}}', job_runs=0))
    with pytest.raises(QrmiError, match="404 Not Found"):
        resource.task_status("unknown")
