"""Front ends of a lease: Qiskit's primitives and Pulser's backend, their results and journal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pulser
import pytest
from emulator_clients import blockade
from pulser import QPUBackend
from pulser.backend import BackendConfig
from pulser.backend.remote import BatchStatus, JobStatus, RemoteBackend, RemoteResultsError
from qiskit import (
    ClassicalRegister,
    QuantumCircuit,
    QuantumRegister,
    generate_preset_pass_manager,
)
from qiskit.circuit import Clbit, Parameter
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, PrimitiveResult
from qiskit.providers import JobStatus as QiskitStatus
from qiskit.quantum_info import SparsePauliOp, Statevector
from qrmi.primitives.ibm import EstimatorV2, SamplerV2, get_backend
from qrmi.pulser import PulserQRMIConnection
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import PayloadError, TaskCancelledError, TaskFailedError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.vendors.ibm import transpiler_target

_steps = itertools.count()


@pytest.fixture
def lease(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Lease]]:
    """Return a function that opens a lease on one of the shared emulator's QPUs, in a new step."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    opened: list[Lease] = []

    def open_and_track(name: str, step: str | None = None) -> Lease:
        opened.append(open_lease(name, step=step or f"test {next(_steps)}"))
        return opened[-1]

    yield open_and_track
    for item in opened:
        item.release()


def transpiled(circuit: QuantumCircuit, lease: Lease) -> QuantumCircuit:
    manager = generate_preset_pass_manager(
        optimization_level=1, target=transpiler_target(lease.target()), seed_transpiler=1
    )
    return manager.run(circuit)


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


@pytest.mark.parametrize("name", ["ibm_fez", "ibm_strict", "ibm_system"])
def test_a_bell_pair_through_the_leases_sampler(lease, name):
    """It runs on both of IBM's APIs, and on a QPU that accepts only its native gates."""
    held = lease(name)
    sampler = held.sampler(options={"default_shots": np.int64(700)})
    assert isinstance(sampler, BaseSamplerV2)

    job = sampler.run([transpiled(bell(), held)])
    result = job.result()

    assert isinstance(result, PrimitiveResult)
    counts = result[0].data.meas.get_counts()
    assert set(counts) == {"00", "11"}
    assert sum(counts.values()) == 700
    assert abs(counts["00"] - 350) < 5 * np.sqrt(175)
    assert job.done()
    assert job.status() is QiskitStatus.DONE
    assert job.future.result().counts() == counts


def test_registers_and_loose_bits_come_back_under_their_names(lease):
    """Their names are gates, keywords and constants of OpenQASM 3, or not names in it at all."""
    held = lease("ibm_fez")
    names = ["crz", "input", "pi", "τ", "Meas", "my-reg", "plain"]
    registers = [ClassicalRegister(1, name) for name in names]
    circuit = QuantumCircuit(QuantumRegister(3, "q"), [Clbit(), Clbit()], *registers)
    circuit.x(1)
    for register in registers:
        circuit.measure(1, register)
    circuit.measure([0, 1], [0, 1])

    job = held.sampler().run([transpiled(circuit, held)], shots=5)
    data = job.result()[0].data

    assert list(data) == [*names, "loose_bits"]
    assert data.crz.get_counts() == {"1": 5}
    assert data["my-reg"].get_counts() == {"1": 5}
    assert data.loose_bits.get_counts() == {"10": 5}
    assert list(job.future.result().data[0]["registers"]) == list(data)
    assert list(job.future.result().to_numpy()) == list(data)


def test_a_register_that_would_hide_an_attribute_keeps_the_name_that_was_sent(lease):
    """Qiskit's `DataBin` has no such fields; all other forms of the result have the name."""
    held = lease("ibm_fez")
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(1, "size"))
    circuit.measure(0, 0)

    job = held.sampler().run([transpiled(circuit, held)], shots=5)

    assert job.result()[0].data.as_written_size.get_counts() == {"0": 5}
    assert job.future.result().counts("size") == {"0": 5}


def test_sampler_pubs_with_their_own_shots_and_broadcast_values(lease):
    """A PUB's shots override those of the run, and results have the shape of the values."""
    held = lease("ibm_strict")
    angle = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.rx(angle, 0)
    circuit.measure_all()
    isa = transpiled(circuit, held)

    result = (
        held.sampler()
        .run([(isa, [[0.0], [np.pi]]), (isa, [np.pi], np.int32(9))], shots=np.int64(30))
        .result()
    )

    assert result[0].data.meas.shape == (2,)
    assert result[0].data.meas.get_counts(0) == {"0": 30}
    assert result[0].data.meas.get_counts(1) == {"1": 30}
    assert result[1].data.meas.get_counts() == {"1": 9}


def test_exact_expectation_values_through_the_leases_estimator(lease):
    """Every Pauli term of two qubits agrees with the state vector, at three angles."""
    held = lease("ibm_exact")
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cx(0, 1)
    circuit.rx(0.3, 1)
    isa = transpiled(circuit, held)
    labels = [a + b for a in "IXYZ" for b in "IXYZ"]
    observables = [[SparsePauliOp(label).apply_layout(isa.layout)] for label in labels]
    angles = [0.2, 1.1, 2.9]

    estimator = held.estimator()
    assert isinstance(estimator, BaseEstimatorV2)
    data = estimator.run([(isa, observables, [angles])]).result()[0].data

    states = [Statevector(circuit.assign_parameters([value])) for value in angles]
    exact = [[s.expectation_value(SparsePauliOp(n)).real for s in states] for n in labels]
    assert data.evs == pytest.approx(np.array(exact), abs=1e-9)


def test_an_estimator_reaches_its_precision(lease):
    """A precision given to `run` overrides the default in the options."""
    held = lease("ibm_fez")
    circuit = QuantumCircuit(1)
    circuit.h(0)
    isa = transpiled(circuit, held)
    observable = SparsePauliOp("Z").apply_layout(isa.layout)

    estimator = held.estimator(options={"default_precision": 0.1})

    assert estimator.run([(isa, observable)]).result()[0].data.stds == pytest.approx(0.1, rel=0.1)
    finer = estimator.run([(isa, observable)], precision=0.02).result()
    assert finer[0].data.stds == pytest.approx(0.02, rel=0.1)


def test_a_rerun_does_not_pay_for_completed_tasks_again(lease, emulator):
    """The primitive's tasks are journaled, so a rerun of the step fetches their results."""
    first, again = lease("ibm_fez", step="once"), lease("ibm_fez", step="once")
    isa = transpiled(bell(), first)
    before = first.sampler().run([isa]).result()
    first.release()
    submitted = emulator.counters()["tasks"]

    after = again.sampler().run([isa]).result()

    assert after[0].data.meas.get_counts() == before[0].data.meas.get_counts()
    assert emulator.counters()["tasks"] == submitted
    assert [record.state for record in Journal().records()] == ["completed"]


def test_primitive_jobs_do_not_block(lease):
    """Their states are visible, and a cancelled job raises and is cancelled at the vendor."""
    held = lease("ibm_slow")
    sampler = held.sampler()
    isa = transpiled(bell(), held)
    jobs = [sampler.run([isa], shots=1)]
    wait_until(lambda: jobs[0].task_id, "the task of the first job, which takes the only lane")
    jobs.append(sampler.run([isa], shots=2))

    assert not jobs[0].in_final_state()
    assert len({job.job_id() for job in jobs}) == 2
    with pytest.raises(TimeoutError):
        jobs[0].result(timeout=0.5)
    assert jobs[0].task_id
    assert jobs[0].status() in (QiskitStatus.QUEUED, QiskitStatus.RUNNING)
    assert jobs[1].status() is QiskitStatus.INITIALIZING  # the QPU has one lane
    for job in jobs:
        job.cancel()
    with pytest.raises((TaskCancelledError, CancelledError)):
        jobs[0].result(timeout=20)
    with pytest.raises((TaskCancelledError, CancelledError)):
        jobs[1].result(timeout=20)

    assert all(job.cancelled() and not job.done() for job in jobs)
    assert jobs[1].status() is QiskitStatus.CANCELLED
    assert TaskState.of(held.resource.task_status(jobs[0].task_id)) is TaskState.CANCELLED


def test_a_failed_task_raises_its_reason(lease):
    """The exception has the vendor's reason."""
    held = lease("ibm_fez")
    content = {
        "program_id": "sampler",
        "parameters": {
            "pubs": [["OPENQASM 3.0; bit c; array[int[8], 2] nonsense; c = measure $0;"]]
        },
    }

    with pytest.raises(TaskFailedError, match="OpenQASM"):
        held.run(content)


def assert_refused(submit: Callable[[], Any], message: str, emulator: Emulator) -> None:
    """Check that a submission is refused before it reaches the vendor."""
    before = emulator.counters()["tasks"]
    with pytest.raises(PayloadError, match=message):
        submit()
    assert emulator.counters()["tasks"] == before


def test_bad_pubs_are_refused_before_submission(lease, emulator):
    """Each message says what is allowed, and no task reaches the vendor."""
    held = lease("ibm_fez")
    sampler, estimator = held.sampler(), held.estimator()
    isa = transpiled(bell(), held)
    free = QuantumCircuit(1)
    free.rx(Parameter("a"), 0)
    free.measure_all()
    for run, message in (
        (lambda: sampler.run([]), "needs at least one PUB"),
        (lambda: sampler.run([isa], shots=0), "positive number of shots"),
        (lambda: sampler.run([(isa, None, -5)]), "positive number of shots"),
        (lambda: sampler.run(7), r"run\(\[circuit\]\)"),
        (lambda: sampler.run([free]), "values for all its parameters"),
        (
            lambda: sampler.run([bell()]),
            r"not ISA for QPU 'ibm_fez' \(IBM's error 1517\): the QPU has no gate 'h'",
        ),
        (lambda: estimator.run([(isa, "ZZ")], precision=-1), "precision"),
        (lambda: held.sampler(options={"shots": 3}), "must be one of: default_shots, run_options"),
        (lambda: held.sampler(options={"default_shot": 3}), "did you mean 'default_shots'"),
        (
            lambda: held.sampler(options={"run_options": {"twirlling": {}}}),
            "run_options: unknown key 'twirlling'; did you mean 'twirling'",
        ),
        (
            lambda: held.estimator(options={"run_options": {"resilience": {"pec_mitigated": 1}}}),
            r"run_options\['resilience'\]: unknown key .*; did you mean 'pec_mitigation'",
        ),
        (lambda: held.pulser_backend(None), "must be one of: sampler, estimator"),
    ):
        assert_refused(run, message, emulator)


def test_a_circuit_for_another_layout_is_refused(lease, emulator):
    """The QPU has the gate, but not between these qubits, or it has too few qubits."""
    held = lease("ibm_fez")
    held.target()
    far = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; cz $0, $7; c[0] = measure $0;'
    wide = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $156; c[0] = measure $156;'
    for text, message in (
        (far, r"no gate 'cz' on qubits \(0, 7\); .* must be one of: \(0, 1\)"),
        (wide, "uses qubit 156; must be 0 to 155 on QPU 'ibm_fez'"),
    ):
        content = {"program_id": "sampler", "parameters": {"pubs": [[text]]}}
        assert_refused(lambda content=content: held.submit(content), message, emulator)


def test_upstreams_own_primitives_accept_the_leases_resource(lease):
    """`qrmi.primitives.ibm` works with a lease's handle."""
    resource = lease("ibm_fez").resource
    isa = generate_preset_pass_manager(backend=get_backend(resource), seed_transpiler=1).run(bell())

    counts = SamplerV2(resource).run([isa], shots=50).result()[0].data.meas.get_counts()

    assert set(counts) == {"00", "11"}
    plus = isa.remove_final_measurements(inplace=False)
    observable = SparsePauliOp("ZZ").apply_layout(isa.layout)
    values = EstimatorV2(resource).run([(plus, observable)], precision=0.01).result()[0].data.evs
    assert values == pytest.approx(1, abs=0.05)


def test_two_atoms_in_blockade_through_the_leases_pulser_backend(lease):
    """They share one excitation: 01 and 10 are equally likely, and 11 is suppressed."""
    held = lease("FRESNEL")
    device = held.pulser_connection().fetch_available_devices()["FRESNEL"]
    sequence = pulser.Sequence.from_abstract_repr(blockade(device))

    backend = held.pulser_backend(sequence)
    results = backend.run([{"runs": np.int64(200)}, {"runs": 100}], wait=True)

    assert isinstance(backend, QPUBackend)
    assert results.get_batch_status() is BatchStatus.DONE
    assert len(results.job_ids) == len(results.results) == 2
    counts = results[0].bitstring_counts
    assert sum(counts.values()) == 200
    assert counts.get("11", 0) + counts.get("00", 0) < 10
    assert abs(counts["01"] - 100) < 40
    assert results[0].atom_order == ("q0", "q1")


def test_a_parametrised_sequence_runs_with_default_shots(lease):
    """Each job has its own variables; without values for these, the sequence is refused."""
    held = lease("FRESNEL")
    device = held.pulser_connection().fetch_available_devices()["FRESNEL"]
    register = pulser.Register.from_coordinates([(0, 0)], prefix="q")
    sequence = pulser.Sequence(register.with_automatic_layout(device), device)
    sequence.declare_channel("global", "rydberg_global")
    area = sequence.declare_variable("area")
    waveform = pulser.BlackmanWaveform(1000, area)
    sequence.add(pulser.Pulse.ConstantDetuning(waveform, 0, 0), "global")
    backend = held.pulser_backend(sequence, config=BackendConfig(default_num_shots=20))

    results = backend.run([{"variables": {"area": [value]}} for value in (1e-6, np.pi)], wait=True)

    assert [result.bitstring_counts for result in results] == [{"0": 20}, {"1": 20}]
    with pytest.raises(PayloadError, match="unbound parameters"):
        backend.run([{"runs": 5}])
    with pytest.raises(PayloadError, match="unknown key 'variable'; did you mean 'variables'"):
        backend.run([{"runs": 5, "variable": {"area": 1.0}}])


def test_a_batchs_results_are_available_once_its_jobs_have_ended(lease, emulator):
    """Until then, Pulser raises; afterwards it has each job's state and result."""
    held = lease("FRESNEL")
    connection = held.pulser_connection()
    device = connection.fetch_available_devices()["FRESNEL"]
    sequence = pulser.Sequence.from_abstract_repr(blockade(device))
    emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "paused"})
    try:
        results = QPUBackend(sequence, connection).run([{"runs": 10}])
        with pytest.raises(RemoteResultsError):
            results.results  # noqa: B018 - Pulser fetches them here
        assert results.get_batch_status() in (BatchStatus.PENDING, BatchStatus.RUNNING)
        assert results.get_available_results() == {}
        other = QPUBackend(sequence, connection).run([{"runs": 11}])
        connection.cancel(other.batch_id)
        assert other.get_batch_status() is BatchStatus.CANCELED
        with pytest.raises(RemoteResultsError):
            other.results  # noqa: B018
    finally:
        emulator.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})
    (job,) = connection._batches[results.batch_id].values()
    job.future.result(60)
    assert job.status() is JobStatus.DONE
    assert sum(results[0].bitstring_counts.values()) == 10


def test_a_virtual_device_runs_through_pulsers_remote_backend(lease):
    """Pasqal's emulators offer devices that do not exist as machines."""
    held = lease("EMU_FREE")
    devices = held.pulser_connection().fetch_available_devices()
    sequence = pulser.Sequence.from_abstract_repr(blockade(devices["EMU_FREE"]))

    backend = held.pulser_backend(sequence)

    assert isinstance(backend, RemoteBackend)
    assert not isinstance(backend, QPUBackend)
    assert backend.run([{"runs": 50}], wait=True)[0].bitstring_counts.get("11", 0) < 3


def test_a_sequence_for_another_device_is_refused(lease, emulator):
    """The backend and `submit` both refuse it, and also a payload with too many runs."""
    held = lease("FRESNEL")
    held.target()
    other = pulser.Sequence.from_abstract_repr(blockade(pulser.AnalogDevice))
    content = {"sequence": json.loads(blockade(pulser.AnalogDevice)), "job_runs": 10}
    message = "for device 'AnalogDevice'; on QPU 'FRESNEL', it must be one of: FRESNEL"
    assert_refused(lambda: held.pulser_backend(other), message, emulator)
    assert_refused(lambda: held.submit(content), message, emulator)
    device = held.pulser_connection().fetch_available_devices()["FRESNEL"]
    long = {"sequence": json.loads(blockade(device)), "job_runs": 2001}
    assert_refused(
        lambda: held.submit(long), "2001 runs: must be at most 2000 on QPU 'FRESNEL'", emulator
    )


def test_a_result_converts_to_pulsers_results(lease):
    """It needs only the sequence that was sent."""
    held = lease("FRESNEL")
    device = held.pulser_connection().fetch_available_devices()["FRESNEL"]
    content = {"sequence": json.loads(blockade(device)), "job_runs": 60}

    result = held.run(content)

    results = result.to_pulser_results(content["sequence"])
    assert dict(results.bitstring_counts) == result.counts()
    bits = result.to_numpy()["atoms"]
    assert bits.shape == (60, 2)
    assert (bits.sum(axis=1) == 1).mean() > 0.9
    assert ["".join(map(str, row)) for row in bits.tolist()].count("01") == result.counts()["01"]


def test_upstreams_own_connection_accepts_the_leases_resource(lease):
    """`qrmi.pulser` works with a lease's handle."""
    connection = PulserQRMIConnection(lease("FRESNEL").resource)
    device = connection.fetch_available_devices()["FRESNEL"]
    sequence = pulser.Sequence.from_abstract_repr(blockade(device))

    results = QPUBackend(sequence, connection).run([{"runs": 30}], wait=True)

    assert results[0].bitstring_counts.get("11", 0) < 4
    assert sum(results[0].bitstring_counts.values()) == 30
