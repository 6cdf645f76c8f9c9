"""Other clients: Pasqal's SDK, Pulser through it, and Pulser and Qiskit through QRMI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pulser
import pytest
from emulator_clients import ask, connect, pi_pulse
from pasqal_cloud import PasqalCloudConnection
from pasqal_cloud.batch import Batch
from pasqal_cloud.endpoints import Endpoints, TokenProviderConf
from pasqal_cloud.errors import (
    BatchCreationError,
    BatchFetchingError,
    JobCreationError,
    RebatchError,
)
from pasqal_cloud.pasqal_cloud_client import PasqalCloudClient
from pasqal_cloud.utils.constants import BatchStatus, JobStatus
from pasqal_cloud.utils.filters import (
    BatchFilters,
    CancelJobFilters,
    JobFilters,
    PaginationParams,
    RebatchFilters,
)
from pulser import QPUBackend
from pulser.backend import BackendConfig
from qiskit import QuantumCircuit
from qiskit_pasqal_provider.providers.gate import HamiltonianGate, InterpolatePoints
from qrmi import TaskStatus
from qrmi.primitives.pasqal import QPPSamplerV2
from qrmi.pulser import PulserQRMIConnection
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.emulator.dialects.pasqal import MAX_RUNS, PULSER_DEVICES


@pytest.fixture(scope="module")
def account(emulator: Emulator) -> dict[str, Any]:
    return log_in(emulator)


def log_in(emulator: Emulator) -> dict[str, Any]:
    """Return the arguments with which Pasqal's SDK logs in to an emulator."""
    credentials = json.loads((emulator.folder / "credentials.json").read_text())
    secrets = credentials["secrets"]["pasqal-cloud"]
    url = f"{emulator.url}/pasqal-cloud"
    return {
        "username": secrets["username"],
        "password": secrets["password"],
        "project_id": secrets["project_id"],
        "endpoints": Endpoints(core=f"{url}/core-fast", account=f"{url}/account"),
        "auth_config": TokenProviderConf(
            token_endpoint=f"{url}/oauth/token",
            public_client_id="any",
            audience="any",
            realm="pcs-users",
            grant_type="http://auth0.com/oauth/grant-type/password-realm",
        ),
    }


@pytest.fixture(scope="module")
def sdk(account: dict[str, Any]) -> Iterator[PasqalCloudClient]:
    """Connect Pasqal's SDK, without its version check, which asks the package index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pasqal_cloud.pasqal_cloud_client._check_sdk_version", lambda: None)
        yield PasqalCloudClient(**account)


def ramp(device: pulser.devices.Device) -> pulser.Sequence:
    """Return a sequence with a pulse of variable area on one atom."""
    register = pulser.Register.from_coordinates([(0, 0)], prefix="q")
    sequence = pulser.Sequence(register.with_automatic_layout(device), device)
    sequence.declare_channel("global", "rydberg_global")
    area = sequence.declare_variable("area")
    sequence.add(pulser.Pulse.ConstantDetuning(pulser.BlackmanWaveform(1000, area), 0, 0), "global")
    sequence.measure()
    return sequence


def fresnel(sdk: PasqalCloudClient) -> pulser.devices.Device:
    return pulser.abstract_repr.deserialize_device(sdk.get_device_specs_dict()["FRESNEL"])


def test_the_sdk_runs_a_parametrised_batch(sdk):
    """One sequence runs as two jobs with their own variables: no pulse and a pi pulse."""
    sequence = ramp(fresnel(sdk))
    jobs = [{"runs": 50, "variables": {"area": [area]}} for area in (0.0, np.pi)]
    batch = sdk.create_batch(sequence.to_abstract_repr(), jobs=jobs, tags=["test"])
    wait_until(lambda: sdk.get_batch(batch.id).status == "DONE", "the end of the batch")
    still, excited = sdk.get_batch(batch.id).ordered_jobs
    assert still.result == {"0": 50}
    assert excited.result == {"1": 50}
    assert sdk.get_batch(batch.id).tags == ["test"]
    assert sdk.get_batch_status(batch.id).value == "DONE"


def test_equal_jobs_of_a_batch_are_independent_and_reproducible_with_a_seed(sdk, tmp_path):
    """Each job of a batch has random numbers of its own, as each PUB has."""
    config = tmp_path / "emulator.toml"
    config.write_text("seed = 3\n[qpus.FRESNEL]\ntype = 'pasqal-cloud'\n")
    jobs = [{"runs": 500, "variables": {"area": [np.pi / 2]}}] * 3
    counts = []
    with start_emulator(tmp_path / "state", config=config) as emulator:
        own = PasqalCloudClient(**log_in(emulator))
        for _ in range(2):
            batch = own.create_batch(ramp(fresnel(own)).to_abstract_repr(), jobs=jobs)
            wait_until(lambda: own.get_batch(batch.id).status == "DONE", "the end of the batch")  # noqa: B023
            ordered = own.get_batch(batch.id).ordered_jobs
            counts.append([job.result["1"] for job in ordered])
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 1


def test_the_sdk_extends_cancels_and_closes_an_open_batch(sdk, emulator):
    """An open batch accepts more jobs; queued jobs can be cancelled; everything is listed."""
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "paused"})
    try:
        sequence = ramp(fresnel(sdk)).to_abstract_repr()
        job = {"runs": 5, "variables": {"area": [1.0]}}
        batch = sdk.create_batch(sequence, jobs=[job], open=True)
        batch = sdk.add_jobs(batch.id, jobs=[job, job])
        assert [item.status for item in batch.ordered_jobs] == ["PENDING"] * 3
        assert sdk.cancel_job(batch.ordered_jobs[0].id).status == "CANCELED"
        assert sdk.close_batch(batch.id).open is False
        with pytest.raises(JobCreationError):
            sdk.add_jobs(batch.id, jobs=[job])
        assert sdk.cancel_batch(batch.id).status == "CANCELED"
        assert batch.id in [item.id for item in sdk.get_batches().results]
        assert batch.ordered_jobs[0].id in [item.id for item in sdk.get_jobs().results]
    finally:
        emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})


@pytest.fixture
def batches(sdk, emulator) -> Iterator[list[Batch]]:
    """Three batches of two jobs that wait, with 1 to 6 runs; the first is open and has a tag."""
    sequence = ramp(fresnel(sdk)).to_abstract_repr()
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "paused"})
    made = []
    for number in range(3):
        runs = (2 * number + 1, 2 * number + 2)
        jobs = [{"runs": each, "variables": {"area": [0.0]}} for each in runs]
        first = {"open": True, "tags": ["first"]} if number == 0 else {}
        made.append(sdk.create_batch(sequence, jobs=jobs, **first))
    yield made
    for batch in made:
        sdk.cancel_batch(batch.id)
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})


def test_the_sdk_filters_batches(sdk, batches):
    """Each filter alone, a list, and several filters together."""
    first, second, third = (batch.id for batch in batches)
    mine = {"start_date": datetime.fromisoformat(batches[0].created_at)}

    def found(**filters: Any) -> list[str]:
        return [batch.id for batch in sdk.get_batches(BatchFilters(**mine | filters)).results]

    assert found() == [third, second, first], "newest first"
    assert found(id=second) == [second]
    assert found(id=[first, third]) == [third, first]
    assert found(tag="first") == [first]
    assert found(tag="fir") == []
    assert found(open=True) == [first]
    assert found(open=False) == [third, second]
    assert found(device_type=["FRESNEL", "EMU_MPS"]) == [third, second, first]
    assert found(device_type="EMU_MPS") == []
    assert found(project_id=sdk.project_id, user_id="emulator") == [third, second, first]
    assert found(project_id=first) == found(user_id="another") == []
    assert found(start_date=datetime.fromisoformat(batches[1].created_at)) == [third, second]
    assert found(end_date=datetime.fromisoformat(batches[1].created_at)) == [second, first]
    sdk.cancel_batch(second)
    assert found(status=BatchStatus.CANCELED) == [second]
    assert found(status=[BatchStatus.CANCELED, BatchStatus.DONE], open=True) == []


def test_the_sdk_filters_jobs(sdk, batches):
    """The filters of a job are its runs, state, errors, dates and ids."""
    jobs = [job for batch in batches for job in sdk.get_batch(batch.id).ordered_jobs]
    mine = {"batch_id": [batch.id for batch in batches]}

    def found(**filters: Any) -> list[int]:
        return [job.runs for job in sdk.get_jobs(JobFilters(**mine | filters)).results]

    assert found() == [6, 5, 4, 3, 2, 1], "newest first"
    assert found(min_runs=3) == [6, 5, 4, 3]
    assert found(min_runs=3, max_runs=4) == [4, 3]
    assert found(batch_id=batches[0].id) == [2, 1]
    assert found(id=[jobs[0].id, jobs[5].id]) == [6, 1]
    assert found(errors=True) == []
    assert found(errors=False) == [6, 5, 4, 3, 2, 1]
    assert found(start_date=datetime.fromisoformat(jobs[4].created_at)) == [6, 5]
    sdk.cancel_job(jobs[2].id)
    assert found(status=JobStatus.CANCELED) == [3]
    assert found(status=[JobStatus.PENDING], max_runs=4) == [4, 2, 1]
    assert [job.runs for job in sdk.get_batch(batches[1].id).ordered_jobs] == [3, 4]


def test_the_sdk_turns_pages_to_their_end(sdk, batches):
    """The total is that of all pages; a page past the end is empty."""
    filters = JobFilters(batch_id=[batch.id for batch in batches])
    seen = []
    for offset in (0, 4, 8):
        page = sdk.get_jobs(filters, PaginationParams(offset=offset, limit=4))
        assert (page.total, page.offset) == (6, offset)
        seen.append([job.runs for job in page.results])
    assert seen == [[6, 5, 4, 3], [2, 1], []]
    assert sdk.get_batches(pagination_params=PaginationParams(limit=1)).total >= 3


def test_a_batch_of_more_than_one_page_is_read_whole(sdk, emulator):
    """The client asks for the pages of a batch's jobs, in the order in which they were added."""
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "paused"})
    try:
        sequence = ramp(fresnel(sdk)).to_abstract_repr()
        jobs = [{"runs": runs, "variables": {"area": [0.0]}} for runs in range(1, 131)]
        batch = sdk.create_batch(sequence, jobs=jobs)
        raw = sdk._client.get_batch_jobs(batch.id)
        assert [job["runs"] for job in raw] == list(range(1, 131))
        assert len(sdk.cancel_jobs(batch.id).jobs) == 130
    finally:
        emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})


def test_the_sdk_cancels_by_filter(sdk, batches):
    """Only the jobs that match are cancelled; for those that have ended there is a reason."""
    first, second, third = batches
    cancelled = sdk.cancel_jobs(first.id, CancelJobFilters(min_runs=2))
    assert [job.runs for job in cancelled.jobs] == [2]
    assert cancelled.errors == {}
    assert [job.status for job in sdk.get_batch(first.id).ordered_jobs] == ["PENDING", "CANCELED"]
    everything = sdk.cancel_jobs(first.id)
    assert [job.runs for job in everything.jobs] == [1]
    assert "has ended: CANCELED" in next(iter(everything.errors.values()))
    unknown = "00000000-0000-4000-8000-000000000000"
    sdk.cancel_batch(third.id)
    answer = sdk.cancel_batches([second.id, third.id, unknown])
    assert [(batch.id, batch.status) for batch in answer.batches] == [(second.id, "CANCELED")]
    reasons = {str(key): reason for key, reason in answer.errors.items()}
    assert "has ended: CANCELED" in reasons[third.id]
    assert "not found" in reasons[unknown]


def test_the_sdk_runs_jobs_again(sdk, batches, emulator):
    """A new batch has copies of the jobs that match, and names those that they come from."""
    _, second, _ = batches
    again = sdk.rebatch(second.id, RebatchFilters(min_runs=4, status=JobStatus.PENDING))
    [job] = again.ordered_jobs
    original = sdk.get_batch(second.id).ordered_jobs[1]
    assert (again.parent_id, job.parent_id) == (second.id, original.id)
    assert (job.runs, job.variables, job.sequence) == (4, original.variables, original.sequence)
    assert again.id != second.id
    with pytest.raises(RebatchError, match="404"):
        sdk.rebatch(second.id, RebatchFilters(status=JobStatus.DONE))
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})
    wait_until(lambda: sdk.get_batch(again.id).status == "DONE", "the end of the new batch")
    assert sdk.get_job(job.id).result == {"0": 4}


def test_more_runs_than_the_device_allows_are_refused_at_submission(sdk):
    """The limit is that of the device's specification."""
    device = fresnel(sdk)
    sequence = ramp(device).to_abstract_repr()
    for runs in (device.max_runs + 1, 2**63):
        with pytest.raises(BatchCreationError, match="'runs'"):
            sdk.create_batch(sequence, jobs=[{"runs": runs, "variables": {"area": [0.0]}}])


@pytest.mark.parametrize("model", PULSER_DEVICES)
def test_the_limit_of_runs_is_that_of_pulsers_device(model):
    assert MAX_RUNS.get(model) == getattr(pulser, model).max_runs


def test_the_sdk_recognises_the_vendors_errors(sdk):
    """An unknown batch is reported with status 404."""
    with pytest.raises(BatchFetchingError, match="404"):
        sdk.get_batch("00000000-0000-4000-8000-000000000000")


def test_results_are_downloaded_through_a_signed_link(sdk, emulator):
    """The link works without an access token, but not without its signature."""
    sequence = ramp(fresnel(sdk)).to_abstract_repr()
    batch = sdk.create_batch(sequence, jobs=[{"runs": 5, "variables": {"area": [0.0]}}])
    wait_until(lambda: sdk.get_batch(batch.id).status == "DONE", "the end of the batch")
    job = sdk.get_batch(batch.id).ordered_jobs[0]
    assert ask(emulator, "GET", f"/pasqal-cloud/results/{job.id}?token=x")[0] == 403
    assert job.result == {"0": 5}


def test_pulser_runs_through_pasqals_connection(account, monkeypatch):
    """Pulser's QPU backend runs a sequence with a mappable register."""
    monkeypatch.setattr("pasqal_cloud.pasqal_cloud_client._check_sdk_version", lambda: None)
    connection = PasqalCloudConnection(**account)
    device = connection.fetch_available_devices()["FRESNEL"]
    layout = device.pre_calibrated_layouts[0]
    register = layout.make_mappable_register(3)
    sequence = pulser.Sequence(register, device)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(500, 2 * np.pi, 0, 0), "global")
    sequence.measure()
    backend = QPUBackend(sequence, connection, config=BackendConfig())
    params = [{"runs": 40, "variables": {"qubits": {"q0": 30}}}]
    results = backend.run(params, wait=False)
    wait_until(lambda: results.get_batch_status().name == "DONE", "the end of the batch")
    assert results[0].bitstring_counts == {"1": 40}


def test_pulser_runs_through_qrmis_connection(emulator):
    """`qrmi.pulser` gets the device from the target, runs one task and returns counts."""
    resource = connect(emulator, "FRESNEL")
    connection = PulserQRMIConnection(resource)
    device = connection.fetch_available_devices()["FRESNEL"]
    sequence = pulser.Sequence.from_abstract_repr(pi_pulse(device))
    results = QPUBackend(sequence, connection).run([{"runs": 30}], wait=True)
    assert results[0].bitstring_counts == {"1": 30}
    assert resource.task_status(results.batch_id) == TaskStatus.Completed


def test_qiskit_runs_through_qrmis_primitive_for_pasqal(emulator):
    """`qrmi.primitives.pasqal` runs a Qiskit circuit with an analog gate on two atoms."""
    times = [0, 0.2, 0.8, 1]
    amplitude = InterpolatePoints(values=[0, 4, 4, 0], times=times, duration=2000)
    detuning = InterpolatePoints(values=[-10, -10, 10, 10], times=times, duration=2000)
    gate = HamiltonianGate(amplitude, detuning, 0.0, [[0, 0], [0, 6]], grid_transform="triangular")
    circuit = QuantumCircuit(2)
    circuit.append(gate, circuit.qubits)
    sampler = QPPSamplerV2(connect(emulator, "EMU_FREE"))
    counts = sampler.run([circuit], shots=200).result()[0].data.counts
    assert sum(counts.values()) == 200
    assert counts.get("01", 0) + counts.get("10", 0) > 180
    assert counts.get("11", 0) < 10
