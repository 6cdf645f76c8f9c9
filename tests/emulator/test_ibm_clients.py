"""Other clients: qiskit-ibm-runtime, `QRMIService` and upstream's `task_runner` command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulator_clients import bell, pi_pulse, read_resources
from pulser import AnalogDevice
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Gate
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime import Batch, EstimatorV2, QiskitRuntimeService, SamplerV2, Session
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
