"""Other clients: qiskit-ibm-runtime, `QRMIService` and upstream's `task_runner` command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import ask, bell, ibm_headers, pi_pulse, read_resources
from pulser import AnalogDevice
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Gate
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime import (
    Batch,
    EstimatorV2,
    QiskitRuntimeService,
    RuntimeJobV2,
    SamplerV2,
    Session,
)
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qiskit_ibm_runtime.exceptions import RuntimeJobFailureError

from qrmi_workflows.emulator import Emulator


@pytest.fixture(scope="module")
def service(emulator: Emulator) -> Iterator[QiskitRuntimeService]:
    """Connect IBM's client to the emulator.

    The addresses of the API and of IAM are configurable. The search for the account's instances is
    not: `Account.list_instances` (qiskit-ibm-runtime 0.51, accounts/account.py) asks cloud.ibm.com
    unless QISKIT_FUNCTIONS_EXPERIMENTAL is set.
    """
    environment = read_resources(emulator)["ibm_fez"]["environment"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IAM_URL", environment["QRMI_IBM_QCS_IAM_ENDPOINT"])
        patch.setenv("QISKIT_FUNCTIONS_EXPERIMENTAL", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield QiskitRuntimeService(
            channel="ibm_quantum_platform",
            token=environment["QRMI_IBM_QCS_IAM_APIKEY"],
            instance=environment["QRMI_IBM_QCS_SERVICE_CRN"],
            url_resolver=lambda *_: environment["QRMI_IBM_QCS_ENDPOINT"],
        )


def ghz(width: int) -> QuantumCircuit:
    circuit = QuantumCircuit(width)
    circuit.h(0)
    for qubit in range(width - 1):
        circuit.cx(qubit, qubit + 1)
    return circuit


def test_ibms_client_finds_the_backends(service):
    """It lists their names and reads their status and target."""
    assert {"ibm_fez", "ibm_quick"} <= {backend.name for backend in service.backends()}
    backend = service.backend("ibm_fez")
    assert backend.status().operational
    assert backend.target.num_qubits == 156


def test_ibms_client_runs_in_a_session(service, emulator):
    """Both primitives run in a dedicated session, and a job is found again by its id."""
    backend = service.backend("ibm_fez")
    isa = transpile(ghz(3), backend, seed_transpiler=1)
    with Session(backend=backend, max_time=300) as session:
        sampler, estimator = SamplerV2(mode=session), EstimatorV2(mode=session)
        job = sampler.run([transpile(_measured(3), backend)], shots=500)
        assert set(job.result()[0].data.meas.get_counts()) == {"000", "111"}
        observable = SparsePauliOp(["ZZI", "XXX"]).apply_layout(isa.layout)
        result = estimator.run([(isa, observable)], precision=0.01).result()[0]
        assert abs(float(result.data.evs) - 2.0) <= 5 * float(result.data.stds) + 1e-9
        assert session.status() == "In progress, accepting new jobs"
        assert session.details()["mode"] == "dedicated"
    assert session.status() == "Closed"
    again = service.job(job.job_id())
    assert again.status() == "DONE"
    assert again.inputs["pubs"][0][0].num_clbits == 3
    assert again.metrics()["timestamps"]["finished"]


def _measured(width: int) -> QuantumCircuit:
    circuit = ghz(width)
    circuit.measure_all()
    return circuit


def test_ibms_client_lists_and_cancels_jobs(service):
    """Pending jobs are listed, and each can be cancelled."""
    slow = service.backend("ibm_slow")
    with Batch(backend=slow) as batch:
        jobs = [SamplerV2(mode=batch).run([transpile(_measured(2), slow)]) for _ in range(2)]
        pending = [job.job_id() for job in service.jobs(pending=True, backend_name="ibm_slow")]
        assert {job.job_id() for job in jobs} <= set(pending)
        for job in reversed(jobs):
            job.cancel()
        assert [job.status() for job in jobs] == ["CANCELLED", "CANCELLED"]


@pytest.fixture(scope="module")
def five(service: QiskitRuntimeService) -> Iterator[list[RuntimeJobV2]]:
    """Five jobs with tags, of two programs: four have ended, one waits in a session."""
    quick, slow = service.backend("ibm_quick"), service.backend("ibm_slow")
    circuit = transpile(_measured(2), quick)
    sampler = SamplerV2(mode=quick, options={"environment": {"job_tags": ["pages", "quick"]}})
    jobs = [sampler.run([circuit]) for _ in range(3)]
    bare = circuit.remove_final_measurements(inplace=False)
    estimator = EstimatorV2(mode=quick, options={"environment": {"job_tags": ["pages"]}})
    jobs.append(estimator.run([(bare, SparsePauliOp("Z" * bare.num_qubits))]))
    batch = Batch(backend=slow)
    waiting = SamplerV2(mode=batch, options={"environment": {"job_tags": ["pages"]}})
    jobs.append(waiting.run([transpile(_measured(2), slow)]))
    for job in jobs[:-1]:
        job.wait_for_final_state()
    yield jobs
    jobs[-1].cancel()
    batch.close()


def test_ibms_client_turns_pages_to_their_end(service, five):
    """The count is that of all pages: with another one, the client would ask for ever."""
    newest = [job.job_id() for job in reversed(five)]

    def found(**query: Any) -> list[str]:
        return [job.job_id() for job in service.jobs(job_tags=["pages"], **query)]

    assert found() == newest
    assert found(limit=None) == newest
    assert found(skip=1, limit=3) == newest[1:4]
    assert found(skip=3, limit=10) == newest[3:]
    assert found(skip=4, limit=None) == newest[4:]
    assert found(limit=2, descending=False) == newest[:2:-1]


def test_ibms_client_filters_jobs(service, five):
    """Each filter alone, and two of them together."""
    ids = [job.job_id() for job in five]

    def found(tags: tuple[str, ...] = ("pages",), **query: Any) -> list[str]:
        jobs = service.jobs(job_tags=list(tags), descending=False, **query)
        return [job.job_id() for job in jobs]

    assert found(("pages", "quick")) == ids[:3], "a job has all of the tags"
    assert found(("page",)) == []
    assert found(pending=True) == ids[4:]
    assert found(pending=False) == ids[:4]
    assert found(program_id="estimator") == [ids[3]]
    assert found(backend_name="ibm_slow") == [ids[4]]
    assert found(session_id=five[4].session_id) == [ids[4]]
    assert found(created_after=five[2].creation_date) == ids[2:]
    assert found(created_before=five[2].creation_date) == ids[:3]
    assert found(created_after=five[1].creation_date, program_id="sampler") == [*ids[1:3], ids[4]]


def test_more_shots_than_the_backend_allows_fail_with_ibms_code(service, emulator):
    """The job is accepted and fails, unless the service no longer enforces the limit."""
    limit = service.backend("ibm_fez").configuration().max_shots
    circuit = transpile(_measured(2), service.backend("ibm_fez"))

    job = SamplerV2(mode=service.backend("ibm_fez")).run([circuit], shots=limit + 1)
    job.wait_for_final_state()
    reason = f"Too many shots given ({limit + 1} > {limit})."
    _, document = ask(
        emulator, "GET", f"/ibm-quantum-compute-service/jobs/{job.job_id()}",
        headers=ibm_headers(emulator),
    )  # fmt: skip
    assert document["state"] == {"status": "Failed", "reason": reason, "reason_code": 6000}
    with pytest.raises(RuntimeJobFailureError, match="Too many shots"):
        job.result()
    lenient = SamplerV2(mode=service.backend("ibm_lenient"))
    allowed = lenient.run([circuit], shots=limit + 1)
    assert not allowed.in_final_state()
    allowed.cancel()


def test_ibms_client_raises_the_reason_of_a_failure(service):
    """The exception names the instruction that the backend does not support."""
    backend = service.backend("ibm_noisy")
    circuit = transpile(_measured(2), backend, initial_layout=[0, 1])
    circuit.append(Gate("unheard_of", 1, []), [0])
    job = service._run(
        program_id="sampler",
        inputs={"pubs": [(circuit,)], "version": 2},
        options={"backend": backend},
    )
    with pytest.raises(RuntimeJobFailureError, match="unheard_of"):
        job.result()


@pytest.fixture
def under_lease(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs a program that knows only QRMI, under `qpu lease exec`."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    programs = Path(sys.executable).parent

    def run(qpus: str, program: str, *arguments: object) -> str:
        lease = [programs / "qpu", "lease", "exec", "--config", emulator.config_path, "--qpu", qpus]
        ended = subprocess.run(
            [*lease, "--", programs / program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


@pytest.mark.parametrize("name", ["ibm_fez", "ibm_system"])
def test_upstreams_command_runs_on_ibms_types(tmp_path, under_lease, name):
    """It reads a payload file and writes a result file; the lease gives it all of its settings."""
    payload = {
        "program_id": "sampler",
        "parameters": {"pubs": [[bell(), None, 100]], "version": 2, "support_qiskit": True},
    }
    (tmp_path / "input.json").write_text(json.dumps(payload))
    under_lease(name, "task_runner", name, tmp_path / "input.json", tmp_path / "out")
    counts = ResultDecoder.decode((tmp_path / "out").read_text())[0].data.meas.get_counts()
    assert sum(counts.values()) == 100
    assert set(counts) == {"00", "11"}


def test_upstreams_command_runs_on_pasqal_cloud(tmp_path, under_lease):
    """The payload file holds the sequence as an object."""
    payload = {"sequence": json.loads(pi_pulse(AnalogDevice)), "job_runs": 20}
    (tmp_path / "input.json").write_text(json.dumps(payload))
    under_lease("FRESNEL", "task_runner", "FRESNEL", tmp_path / "input.json", tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text()) == {"counter": {"1": 20}}


def test_qrmis_service_lists_the_leased_resources(under_lease):
    """It reads the environment of the lease."""
    names = ["ibm_fez", "ibm_system", "FRESNEL"]
    code = (
        "from qrmi import QRMIService; found = QRMIService().resources(); "
        "print(sorted(r.resource_id() for r in found)); "
        "print({str(r.status().status).split('.')[-1] for r in found})"
    )
    listed, statuses = under_lease(",".join(names), "python", "-c", code).splitlines()
    assert listed == str(sorted(names))
    assert statuses == "{'Online'}"
