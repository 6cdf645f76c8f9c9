"""The job of the lease's primitives is what Qiskit's jobs are, and its errors are caught alike."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from qiskit import QuantumCircuit, generate_preset_pass_manager
from qiskit.primitives import BasePrimitiveJob
from qiskit.providers import BackendV2, JobError, JobTimeoutError
from qiskit_ibm_runtime import RuntimeJobV2
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qiskit_ibm_runtime.exceptions import (
    IBMRuntimeError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobTimeoutError,
)
from qrmi import QrmiError
from qrmi.primitives.runtime_job_v2 import RuntimeJobV2 as QRMIJob

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import (
    PayloadError,
    ResourceError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
)
from qrmi_workflows.frontends.qiskit_errors import as_job_error
from qrmi_workflows.frontends.qiskit_job import job_class
from qrmi_workflows.vendors.ibm import transpiler_target

Open = Callable[[str], Lease]

WITHOUT_EQUIVALENT = {"update_tags"}
"""QRMI sends no tags."""


@pytest.fixture
def lease(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens a lease on one of the shared emulator's QPUs."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    opened: list[Lease] = []

    def open_and_track(name: str) -> Lease:
        opened.append(open_lease(name))
        return opened[-1]

    yield open_and_track
    for item in opened:
        item.release()


def run(held: Lease, shots: int = 10, **options: Any) -> Any:
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.measure_all()
    manager = generate_preset_pass_manager(1, target=transpiler_target(held.target()))
    return held.sampler(options or None).run([manager.run(circuit)], shots=shots)


def public_names(kind: type) -> set[str]:
    members = inspect.getmembers(kind, lambda each: callable(each) or isinstance(each, property))
    return {name for name, _ in members if name.islower() and not name.startswith("_")}


def test_it_has_all_methods_of_qiskits_and_upstreams_jobs(lease):
    job = run(lease("ibm_quick"))

    expected = public_names(RuntimeJobV2) | public_names(QRMIJob) | public_names(BasePrimitiveJob)
    assert expected - WITHOUT_EQUIVALENT <= public_names(type(job))
    job.result()


@pytest.mark.parametrize("name", ["ibm_fez", "ibm_system"])
def test_a_completed_job_answers_as_upstreams_example_asks(lease, name):
    held, before = lease(name), datetime.now(UTC)

    job = run(held)
    result = job.result()
    after = datetime.now(UTC)

    assert sum(result[0].data.meas.get_counts().values()) == 10
    assert job.errored() is False
    assert job.error_message() is None
    assert isinstance(job.logs(), str)
    assert job.primitive_id == "sampler"
    assert job.inputs["pubs"][0][2] == 10
    assert (job.tags, job.private, job.image) == ([], False, "")
    assert job.usage_estimation == {"quantum_seconds": None}
    assert job.properties().backend_name == held.qpu
    slack = timedelta(seconds=1)
    assert before - slack <= job.creation_date <= after + slack
    assert job.creation_date.tzinfo is not None
    timestamps = job.metrics()["timestamps"]
    finished = datetime.fromisoformat(timestamps["finished"])
    assert datetime.fromisoformat(timestamps["created"]) <= finished <= after
    assert 0 <= job.usage() <= (after - before).total_seconds()
    assert job.metrics()["usage"] == {"quantum_seconds": job.usage()}
    assert job.instance.startswith("crn:")
    backend = job.backend()
    assert isinstance(backend, BackendV2)
    assert backend.name == held.qpu
    flipped = QuantumCircuit(1)
    flipped.x(0)
    flipped.measure_all()
    again = held.sampler().run([generate_preset_pass_manager(1, backend=backend).run(flipped)])
    assert again.result()[0].data.meas.get_counts() == {"1": 1024}


def test_a_session_is_named_if_the_vendor_has_sessions(lease):
    """The lease of IBM Quantum System API has a token that the vendor does not know."""
    session, none = lease("ibm_quick"), lease("ibm_system")

    assert run(session).session_id == session.resource.metadata()["session_id"]
    assert run(none).session_id is None


def test_a_decoder_of_qiskits_decodes_the_vendors_text(lease):
    job = run(lease("ibm_fez"))

    decoded = job.result(decoder=ResultDecoder)

    assert decoded[0].data.meas.get_counts() == job.result()[0].data.meas.get_counts()


def test_a_failed_job_raises_what_each_program_catches(lease):
    """The reason is the vendor's; the error survives the way from a worker of Parsl."""
    pubs = [["OPENQASM 3.0; bit c; nonsense; c = measure $0;"]]
    content = {"program_id": "sampler", "parameters": {"version": 2, "pubs": pubs}}
    job = job_class()(lease("ibm_fez"), content)

    for kind in (RuntimeJobFailureError, JobError, RuntimeError, QrmiError, TaskFailedError):
        with pytest.raises(kind) as caught:
            job.result()
    error = caught.value
    assert job.errored()
    assert job.error_message() == str(error)
    assert job.task_id in str(error)
    assert "OpenQASM" in str(error)
    assert error.qpu == "ibm_fez"
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, JobError)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_cancelled_job_raises_what_each_program_catches(lease):
    job = run(lease("ibm_slow"))

    with pytest.raises(JobTimeoutError) as late:
        job.result(timeout=0.1)
    with pytest.raises(RuntimeJobTimeoutError):
        job.wait_for_final_state(timeout=0.1)
    assert isinstance(late.value, TimeoutError)
    assert job.usage() == 0
    job.cancel()
    job.wait_for_final_state(timeout=60)
    for kind in (RuntimeInvalidStateError, JobError, CancelledError, QrmiError, TaskCancelledError):
        with pytest.raises(kind):
            job.result()
    assert not job.errored()
    assert job.error_message() is None


def test_errors_of_the_vendors_api_are_caught_as_well():
    error = ResourceError("no answer", "ibm_fez", "task_status", 503, True)

    converted = as_job_error(error)

    assert isinstance(converted, IBMRuntimeError | JobError)
    assert isinstance(converted, QrmiError)
    assert str(converted) == "no answer"
    assert (converted.status_code, converted.retryable) == (503, True)
    assert as_job_error(converted).args == converted.args
    assert not isinstance(converted, TaskError)


def test_a_wrong_input_is_a_value_error_as_qiskits_is(lease):
    sampler = lease("ibm_quick").sampler()

    with pytest.raises(ValueError, match="positive number of shots") as caught:
        sampler.run([QuantumCircuit(1, 1)], shots=-1)
    assert isinstance(caught.value, PayloadError)
