"""Rules on emulated QPUs: what they ask of Slurm, their stages, and what they leave behind."""

from __future__ import annotations

import json
import logging

import pytest
from snakemake_jobs import DAG, Job

from qrmi_workflows.results import COMPRESS_FROM, QuantumResult
from snakemake_executor_plugin_slurm_qpu.emulated_outputs import refuse_emulated_outputs
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.stage_requests import StageRequests
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

EMULATED = {"qpu": 1, "qpu_name": "emulated:fez"}
LOGGER = logging.getLogger("snakemake")


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """The requests of a workflow on a cluster without a site policy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("QPU_SITE", "QPU_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = QPURequests()
    found._nodes = ["(null)|4"]
    return found


def test_a_rule_asks_slurm_for_nothing_and_needs_no_site_policy(requests):
    job = Job("a", EMULATED | {"qpu_exclusive": 1})

    (request,) = requests.request_of(job)

    assert request.qpu == "emulated:fez"
    assert requests.sbatch_options(job, (request,)) == []
    assert requests.lanes((request,)) is None


def test_an_unknown_model_is_refused_before_sbatch(requests):
    with pytest.raises(QPURequestError, match=r"rule 'a': .* Did you mean 'emulated:fez'\?"):
        requests.request_of(Job("a", {"qpu": 1, "qpu_name": "emulated:ibm_fez"}))


def test_a_stage_is_not_opened_for_jobs_that_emulate_their_qpus(requests):
    jobs = [Job(name, EMULATED | {"qpu_stage": "vqe"}) for name in ("a", "b")]
    jobs.append(Job("c", {"qpu_stage": "vqe"}))
    stages = StageRequests(requests)
    stages.check_workflow(DAG(jobs))

    assert [stages.stage_of(job) for job in jobs] == [None, None, "vqe"]
    assert stages.plan(DAG(jobs), "vqe") is None


class Done(DAG):
    """A graph whose jobs have all run."""

    @property
    def jobs(self):
        return self.all

    def needrun(self, job):
        del job
        return False


class Sampled(Job):
    """A job with one output."""

    output = ("r.json",)
    jobid = 1

    def uuid(self):
        return "u"


def save(qpu: str, vendor_result: str = "") -> None:
    QuantumResult(
        qpu=qpu,
        type="ibm-quantum-compute-service",
        program="sampler",
        task_id="t",
        payload_digest="0" * 64,
        submitted="2026-01-01T00:00:00+00:00",
        completed="2026-01-01T00:00:00+00:00",
        data=[],
        vendor_result=vendor_result,
    ).save("r.json")


@pytest.mark.parametrize("size", [0, COMPRESS_FROM])
def test_a_result_of_a_rehearsal_is_refused_for_the_real_qpu(requests, size):
    save("emulated:fez", "x" * size)
    real = {"qpu": 1, "qpu_name": "ibm_fez"}

    with pytest.raises(QPURequestError) as caught:
        refuse_emulated_outputs(Done([Sampled("a", real)]), LOGGER)

    assert str(caught.value) == (
        "rule 'a': it asks for ibm_fez, but its output r.json is of an earlier run on the emulated "
        "QPU 'emulated:fez'. Run the rule again with `--forcerun a`, or remove the output."
    )
    refuse_emulated_outputs(Done([Sampled("a", EMULATED), Sampled("b", {})]), LOGGER)


def test_results_of_real_qpus_and_other_files_are_not_refused(requests, tmp_path):
    done = Done([Sampled("a", {"qpu": 1, "qpu_name": "ibm_fez"})])
    refuse_emulated_outputs(done, LOGGER)
    save("ibm_fez", '"qpu": "emulated:fez"')
    refuse_emulated_outputs(done, LOGGER)
    (tmp_path / "r.json").write_text('{"qpu": "emulated:fez"}')
    refuse_emulated_outputs(done, LOGGER)


def test_the_last_lease_of_a_job_tells_for_files_of_any_kind(requests, tmp_path):
    done = Done([Sampled("a", {"qpu": 1, "qpu_name": "ibm_fez"})])
    (tmp_path / "r.json").write_text("{}")
    records = tmp_path / WORKFLOW_RECORDS
    records.parent.mkdir(parents=True)
    step = f"snakemake a u in {tmp_path}"
    records.write_text(json.dumps({"step": step, "qpu": "emulated:fez"}) + "\n")

    with pytest.raises(QPURequestError, match="of an earlier run"):
        refuse_emulated_outputs(done, LOGGER)
    with records.open("a") as file:
        file.write(json.dumps({"step": step, "qpu": "ibm_fez"}) + "\n")
    refuse_emulated_outputs(done, LOGGER)


def test_a_step_that_has_moved_in_the_middle_counts_as_emulated(requests, tmp_path):
    """Its own lease, of the real QPU, is released and recorded last."""
    done = Done([Sampled("a", {"qpu": 1, "qpu_name": "ibm_fez"})])
    (tmp_path / "r.json").write_text("{}")
    records = tmp_path / WORKFLOW_RECORDS
    records.parent.mkdir(parents=True)

    def write(*leases):
        step = {"step": f"snakemake a u in {tmp_path}"}
        lines = [
            json.dumps(step | {"qpu": qpu, "tasks": tasks, "owner": {"job": job}})
            for qpu, tasks, job in leases
        ]
        records.write_text("\n".join(lines))

    write(("emulated:fez", 1, "7"), ("ibm_fez", 1, "7"))
    with pytest.raises(QPURequestError, match="of an earlier run"):
        refuse_emulated_outputs(done, LOGGER)
    write(("emulated:fez", 0, "7"), ("ibm_fez", 1, "7"))
    refuse_emulated_outputs(done, LOGGER)
    write(("emulated:fez", 1, "7"), ("ibm_fez", 1, "8"))
    refuse_emulated_outputs(done, LOGGER)


@pytest.mark.parametrize(
    "resources",
    [
        {"qpu_name": "ibm_fez", "qpu_fallback": "ibm_torino|emulated:fez"},
        {"qpu_name": "ibm_fez|emulated:fez"},
    ],
)
def test_an_emulated_qpu_that_the_rule_names_is_only_reported(requests, caplog, resources):
    save("emulated:fez")

    refuse_emulated_outputs(Done([Sampled("a", {"qpu": 1} | resources)]), LOGGER)

    assert "is of an earlier run on 'emulated:fez', as its resources allow" in caplog.text
