"""Stages of Snakemake workflows: several rules and jobs share one lease, and no node waits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from snakemake.exceptions import WorkflowError
from snakemake_runs import PAYLOAD, Project
from test_snakemake_requests import jobs, run
from waiting import wait_until

from qrmi_workflows.lease.stage import find_stage
from qrmi_workflows.sandbox import Sandbox

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.engines,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),  # Snakemake's own
]

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOW = "scontrol --oneliner show job $SLURM_JOB_ID"
LOOP = f"""
rule all:
    input: "1.shown", "after.txt"
rule sample:
    input: lambda wildcards: [] if wildcards.i == "0" else f"{{int(wildcards.i) - 1}}.next"
    output: result="{{i}}.result.json", shown="{{i}}.shown"
    resources: qpu=1, qpu_name="ibm_fez", qpu_stage="loop"
    shell: "{SHOW} > {{output.shown}}; qpu run payload.json -o {{output.result}}"
rule update:
    input: "{{i}}.result.json"
    output: "{{i}}.next"
    resources: qpu_stage="loop"
    shell: "{SHOW} > {{output}}"
rule after:
    input: "1.result.json"
    output: "after.txt"
    localrule: True
    shell: "touch {{output}}"
"""
"""Two rounds: a task on the QPU, and a classical job that the next task waits for."""

FAN_OUT = f"""
rule all:
    input: expand("{{i}}.json", i=range(COUNT))
rule sample:
    output: "{{i}}.json"
    resources: qpu=1, qpu_name="ibm_fez", qpu_stage="fan"
    shell: "{SHOW} > {{wildcards.i}}.shown; qpu run payload.json -o {{output}}"
"""


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A workflow's folder, with a payload, and a state folder of its own."""
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    # In this process too, which looks at the stages.
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    project = Project.on_idle_slurm(tmp_path, sandbox)
    project.environ["QPU_STATE"] = str(tmp_path / "state")
    yield project
    if project.jobs():  # a test has failed; its stage would keep the QPU from the other tests
        project.slurm("scancel", "--me")
        wait_until(lambda: not project.jobs(), "the jobs to end")


def ended(name: str) -> bool:
    """Return whether a stage has ended."""
    return find_stage(name).is_ended


def sessions_of(name: str) -> int:
    """Return how many sessions a stage of more than two tasks has opened.

    On a slow machine, one is idle for so long that it is cheaper to open another.
    """
    return find_stage(name).generation


def leases(project: Project) -> list[dict[str, str]]:
    """Return the lease records of the workflow."""
    lines = project.read(".snakemake/slurm_qpu/leases.jsonl").splitlines()
    return [json.loads(line) for line in lines]


def no_gres(shown: str) -> bool:
    """Return whether a job, as scontrol shows it, asks for no QPU."""
    return not re.search(r"TresPer\w+=\S*qpu|Licenses=qpu", shown)


@contextmanager
def busy(project: Project, qpu: str = "ibm_fez") -> Iterator[None]:
    """Hold a QPU with another job of the site."""
    options = (f"--gres=qpu:{qpu}:1", f"--licenses=qpu_{qpu}:1", "--output=/dev/null")
    job = project.slurm("sbatch", "--parsable", *options, "--wrap=sleep 600").strip()
    wait_until(lambda: "RUNNING" in state_of(project, job), "the job that holds the QPU")
    try:
        yield
    finally:
        project.slurm("scancel", job)


def state_of(project: Project, job: str) -> str:
    return project.slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T %r").strip()


def waiting_jobs(project: Project) -> list[str]:
    """Return the ids of the jobs that wait for a stage."""
    listed = project.slurm("squeue", "--noheader", "--state=PENDING", "--format=%A|%r|%k")
    rows = (line.split("|") for line in listed.splitlines())
    return [job for job, reason, comment in rows if " qpu_stage=" in comment and reason]


def test_the_rules_of_a_loop_share_one_lease_and_hold_no_qpu(project: Project):
    opened = project.sessions()[0]
    project.write(LOOP)

    output = project.run()

    assert project.sessions() == (opened + 1, 0)
    assert "Mode dedicated: its 2 jobs with the QPU run in 2 rounds" in output
    for name in ("0.shown", "1.shown", "0.next"):
        shown = project.read(name)
        assert no_gres(shown)
        assert f"qpu_stage=loop:{find_stage('loop').id}" in shown
    assert [lease["rule"] for lease in leases(project)] == ["stage loop"]
    assert ended("loop")
    wait_until(lambda: not project.jobs(), "the end of the stage's jobs")


def test_a_job_waits_in_slurm_and_on_no_node_until_the_qpu_is_there(project: Project):
    opened = project.sessions()[0]
    project.write(FAN_OUT.replace("COUNT", "3"))

    with busy(project):
        process = project.start()
        wait_until(lambda: len(waiting_jobs(project)) == 3, "the jobs of the stage")
        assert list(project.folder.glob("*.shown")) == []
        running = project.slurm("squeue", "--noheader", "--state=RUNNING", "--format=%j").split()
        assert running == ["wrap"]
    output = project.wait(process)

    assert project.sessions() == (opened + 1, 0)
    assert "Mode batch: none of its 3 jobs with the QPU waits for another's answer." in output
    told = "Jobs of stage 'fan' wait in the queue until it is ready (the keeper's job "
    assert output.count(told) == 1


def test_a_request_that_no_stage_can_meet_is_refused_before_anything_is_submitted(
    in_sandbox: Sandbox, tmp_path: Path
):
    before = jobs(in_sandbox, tmp_path)

    with pytest.raises(WorkflowError, match=r"^rule 'b': it asks for QPU 'FRESNEL' in stage 'vqe'"):
        run(
            tmp_path,
            """
            rule b:
                input: "a.txt"
                output: "b.txt"
                resources: qpu=1, qpu_name="FRESNEL", qpu_stage="vqe"
                shell: "touch {output}"
            rule a:
                output: "a.txt"
                resources: qpu=1, qpu_name="ibm_fez", qpu_stage="vqe"
                shell: "touch {output}"
            """,
        )

    assert jobs(in_sandbox, tmp_path) <= before  # Slurm may have forgotten some


GROWING = """
rule all:
    input: "total.txt"
rule first:
    output: "first.json"
    resources: qpu=1, qpu_name="ibm_fez", qpu_stage="growing"
    shell: "qpu run payload.json -o {output}"
checkpoint choose:
    input: "first.json"
    output: directory("chosen")
    localrule: True
    shell: "mkdir {output} && touch {output}/a {output}/b"
rule sample:
    input: "chosen/{name}"
    output: "{name}.json"
    resources: qpu=1, qpu_name="ibm_fez", qpu_stage="growing"
    script: "sample.py"
def chosen(wildcards):
    folder = checkpoints.choose.get().output[0]
    return expand("{name}.json", name=glob_wildcards(folder + "/{name}").name)
rule total:
    input: chosen
    output: "total.txt"
    localrule: True
    shell: "touch {output}"
"""
"""Further jobs of the stage are known only after a checkpoint, and need a Snakemake inside."""

SAMPLE = """
from pathlib import Path
from qrmi_workflows import open_lease
with open_lease(snakemake.resources.qpu_name) as lease:
    result = lease.run(Path("payload.json"))
Path(snakemake.output[0]).write_text(result.task_id)
"""


@pytest.mark.slow
def test_a_stage_stays_open_for_the_jobs_that_follow_from_a_checkpoint(project: Project):
    opened = project.sessions()[0]
    project.write(GROWING, sample=SAMPLE)

    project.run()

    assert {lease["rule"] for lease in leases(project)} == {"stage growing"}
    assert project.sessions() == (opened + sessions_of("growing"), 0)
    assert project.read("a.json") != project.read("b.json")


@pytest.mark.slow
def test_a_stage_that_was_idle_is_opened_again(project: Project):
    opened = project.sessions()[0]
    wait = "until grep -q ended $QPU_STATE/stages/loop/stage.json; do sleep 0.2; done"
    classical = LOOP[LOOP.index("rule update") : LOOP.index("rule after")]
    local = classical.replace('resources: qpu_stage="loop"', "localrule: True")
    project.write(LOOP.replace(classical, local.replace(SHOW, f"{wait}; date")))

    output = project.run("--slurm-qpu-stage-idle", "10")

    assert project.sessions() == (opened + 2, 0)
    assert "Stage 'loop' has ended: it had nothing to do" in output
    assert len(leases(project)) == 2


FAILING = FAN_OUT.replace("COUNT", "2").replace("qpu run", "test {wildcards.i} = 1; qpu run")


@pytest.mark.slow
def test_a_failure_closes_the_stage_and_a_rerun_opens_it_again(project: Project):
    opened = project.sessions()[0]
    project.write(FAILING)

    project.run("--keep-going", fails=True)
    assert ended("fan")
    assert project.sessions() == (opened + 1, 0)

    project.write(FAN_OUT.replace("COUNT", "2"))
    project.run()
    assert project.sessions() == (opened + 2, 0)
    wait_until(lambda: not project.jobs(), "the end of the stage's jobs")


@pytest.mark.slow
def test_the_end_of_a_stage_explains_the_failure_of_its_held_jobs(project: Project):
    project.write(FAN_OUT.replace("COUNT", "1"))

    with busy(project):
        process = project.start()
        wait_until(lambda: waiting_jobs(project), "the job of the stage")
        project.slurm("scancel", str(find_stage("fan").keeper_job))
        output = project.wait(process, fails=True)

    assert "was cancelled" in output
    assert re.search(r"Stage 'fan' has ended: .*keeper.*cancelled", output)
    wait_until(lambda: not project.jobs(), "the end of all jobs")


@pytest.mark.slow
def test_ctrl_c_leaves_neither_a_stage_nor_a_held_job(project: Project):
    project.write(FAN_OUT.replace("COUNT", "2"))

    with busy(project):
        process = project.start()
        wait_until(lambda: len(waiting_jobs(project)) == 2, "the jobs of the stage")
        os.killpg(process.pid, signal.SIGINT)
        project.wait(process, fails=True)
        wait_until(lambda: len(project.jobs()) == 1, "the end of all but the busy job")

    assert ended("fan")


@pytest.mark.slow
def test_a_rerun_replaces_the_held_jobs_of_a_killed_snakemake(project: Project):
    opened = project.sessions()[0]
    project.write(FAN_OUT.replace("COUNT", "2"))

    with busy(project):
        process = project.start()
        wait_until(lambda: len(waiting_jobs(project)) == 2, "the jobs of the stage")
        before, stage = set(waiting_jobs(project)), find_stage("fan").id
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        project.run("--unlock")
        process = project.start("--rerun-incomplete")
        wait_until(
            lambda: len(set(waiting_jobs(project)) - before) == 2 and not before & project.jobs(),
            "the new jobs instead of the old ones",
        )
        assert find_stage("fan").id == stage
    project.wait(process)

    assert project.sessions() == (opened + 1, 0)
    assert ended("fan")
    wait_until(lambda: not project.jobs(), "the end of the stage's jobs")


@pytest.mark.slow
def test_the_stage_of_a_killed_snakemake_runs_its_held_jobs_and_ends(project: Project):
    opened = project.sessions()[0]
    project.write(FAN_OUT.replace("COUNT", "2"))

    with busy(project):
        process = project.start("--slurm-qpu-stage-idle", "3")
        wait_until(lambda: len(waiting_jobs(project)) == 2, "the jobs of the stage")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    wait_until(lambda: ended("fan") and not project.jobs(), "the end of the stage", seconds=60)
    assert project.sessions() == (opened + 1, 0)
    assert (project.folder / "0.json").exists()


@pytest.mark.slow
def test_the_loop_of_the_examples_finds_the_ground_state_under_one_lease(project: Project):
    opened = project.sessions()[0]
    shutil.copytree(EXAMPLES / "h2", project.folder, dirs_exist_ok=True)

    output = project.run("-s", "loop.smk")

    answer = json.loads(project.read("lowest.json"))
    assert answer["energy"] == pytest.approx(answer["exact"], abs=1.6e-3)
    assert project.sessions() == (opened + sessions_of("h2"), 0)
    assert {lease["rule"] for lease in leases(project)} == {"stage h2"}
    assert "Mode dedicated: its 3 jobs with the QPU run in 3 rounds" in output


@pytest.mark.slow
def test_a_group_is_one_job_of_the_stage_and_other_rules_have_leases_of_their_own(project: Project):
    opened = project.sessions()[0]
    project.write(
        f"""
        rule all:
            input: "a.txt", "other.json"
        rule evaluate:
            input: "a.json"
            output: "a.txt"
            group: "g"
            shell: "{SHOW} > {{output}}"
        rule sample:
            output: "a.json"
            group: "g"
            resources: qpu=1, qpu_name="ibm_fez", qpu_stage="grouped"
            shell: "qpu run payload.json -o {{output}}"
        rule other:
            output: "other.json"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "qpu run payload.json -o {{output}}"
        """
    )

    output = project.run(QPU_STAGE="grouped")

    assert "$QPU_STAGE=grouped is ignored" in output
    shown = project.read("a.txt")
    assert no_gres(shown)
    assert f"qpu_stage=grouped:{find_stage('grouped').id}" in shown
    assert project.sessions() == (opened + 2, 0)


@pytest.mark.slow
def test_a_loop_survives_its_keeper_and_a_retry_its_keepers_job(project: Project):
    accepted = project.accepted_tasks()
    wait = "touch {wildcards.i}.started; until test -e go; do sleep 0.1; done"
    project.write(LOOP.replace("qpu run", f"{wait}; qpu run"))

    process = project.start("--retries", "1")
    wait_until((project.folder / "0.started").exists, "the first job")
    before = find_stage("loop")
    os.kill(before.keeper.pid, signal.SIGKILL)
    wait_until(lambda: find_stage("loop").generation > before.generation, "another keeper")
    project.slurm("scancel", str(before.keeper_job))
    wait_until(lambda: ended("loop"), "the end of the stage")
    (project.folder / "go").touch()
    project.wait(process)

    assert find_stage("loop").id != before.id
    assert project.accepted_tasks() == accepted + 2
    assert project.sessions()[1] == 0


@pytest.mark.slow
def test_a_fan_out_in_one_job_shares_tasks_if_its_rule_asks_for_it(project: Project):
    accepted = project.accepted_tasks()
    project.write(
        """
        rule sweep:
            output: "counts.json"
            resources: qpu=1, qpu_name="ibm_fez", qpu_stage="sweep", qpu_coalesce=1
            script: "sweep.py"
        """,
        sweep="""
        import json
        from pathlib import Path
        from qrmi_workflows import open_lease
        payload = json.loads(Path("payload.json").read_text())
        with open_lease() as lease:
            counts = [result.counts() for result in lease.map([payload] * 3)]
        Path(snakemake.output[0]).write_text(json.dumps([dict(each) for each in counts]))
        """,
    )

    project.run()

    assert json.loads(project.read("counts.json")) == [{"1": 100}] * 3
    assert project.accepted_tasks() == accepted + 1
