"""Snakemake rules with `qpu=1`, on a real Slurm with emulated QPUs."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from snakemake_runs import Project, acquired_by_the_site, submitted
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox

PROFILE = Path(__file__).parents[2] / "snakemake_ext" / "profile"
pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow's folder."""
    return Project.on_idle_slurm(tmp_path, sandbox)


def test_a_rule_with_a_qpu_holds_gres_licence_and_lease_and_others_run_as_stock(project):
    project.write(
        """
        rule classical:
            input: "deep/folder/quantum.txt"
            output: "classical.txt"
            shell: "env > {output}"
        rule quantum:
            output: "deep/folder/quantum.txt", "script.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            threads: 2
            shell:
                '''
                (scontrol show job $SLURM_JOB_ID; env) > {output[0]}
                scontrol write batch_script $SLURM_JOB_ID - > {output[1]}
                '''
        """
    )
    opened, _ = project.sessions()

    output = project.run("--profile", str(PROFILE))

    quantum, classical = project.read("deep/folder/quantum.txt"), project.read("classical.txt")
    assert re.search(r"TresPerNode=gres[:/]qpu:ibm_fez:1\n", quantum)
    assert "Licenses=qpu_ibm_fez:1" in quantum
    assert "Requeue=0" in quantum
    assert "QRMI_JOB_QPU_RESOURCES=ibm_fez\n" in quantum
    assert "OMP_NUM_THREADS=2\n" in quantum
    assert "QRMI_JOB_QPU_RESOURCES" not in classical
    assert "SLURM_STEP_ID=0\n" in classical
    assert project.sessions() == (opened + 1, 0)
    token = quantum.split("ibm_fez_QRMI_JOB_ACQUISITION_TOKEN=")[1].splitlines()[0]
    script = project.read("script.txt")
    assert "lease exec --qpu ibm_fez" in script
    config = project.slurm("scontrol", "show", "config")
    kill_wait = re.search(r"KillWait += (\d+) sec", config)[1]
    assert f" QPU_KILL_WAIT={kill_wait} " in script, "the job must not have to ask Slurm for it"
    assert f"QPU_KILL_WAIT={kill_wait}\n" in quantum
    qpus = json.loads(Path(project.environ["QPU_CONFIG"]).read_text())["resources"]
    secrets = {token, *(value for qpu in qpus for value in qpu["environment"].values())}
    assert not [secret for secret in secrets if secret in script + output]


def test_a_fan_out_of_twenty_takes_turns_on_its_qpus(project):
    project.write(
        """
        QPUS = "FRESNEL", "ibm_fez"
        rule all:
            input: expand("{i}.txt", i=range(20))
        rule quantum:
            output: "{i}.txt"
            resources: qpu=1, qpu_name=lambda wildcards: QPUS[int(wildcards.i) % 2]
            shell: "mkdir {resources.qpu_name} && rmdir {resources.qpu_name} && touch {output}"
        """
    )

    began = time.monotonic()
    with project.queries() as asked:
        output = project.run()

    assert len(submitted(output)) == 20
    counts = Counter(asked())
    # A marker waits for others, but only for 10 s.
    assert counts.pop("head") < 8 + (time.monotonic() - began) / 10
    assert max(counts.values()) == 1, "its time limit"
    waits = [int(seconds) for seconds in re.findall(r"job pending (\d+) s", output)]
    assert len(waits) == 20
    assert max(waits) > min(waits)


def test_a_chain_goes_on_at_once_and_costs_one_question_per_job(project):
    project.write(
        """
        rule all:
            input: "5.txt"
        rule quantum:
            input: lambda wildcards: f"{int(wildcards.i) - 1}.txt" if wildcards.i > "1" else []
            output: "{i}.txt"
            resources: qpu=1, qpu_name="FRESNEL"
            shell: "touch {output}; date +%s.%N > time.{wildcards.i}; echo ended >> queries"
        """
    )

    began = time.time()
    with project.queries() as asked:
        # Without a scheduled check within the run's limit, only markers can tell of the ends.
        project.run("--slurm-qpu-init-seconds-before-status-checks=600")

    ended = [float(project.read(f"time.{i}")) for i in range(1, 6)]
    first, *steps = (after - before for before, after in pairwise([began, *ended]))
    # To start Snakemake and the first job takes longer, the more so on a loaded machine.
    assert sorted(steps)[1] < first, "a job's end must be noticed and the next job started"
    before, *costs = (part.split().count("head") for part in " ".join(asked()).split("ended"))
    assert min(costs) == 1
    assert before + sum(costs) <= 2 + 3 * 5, "a busy Slurm learns late that a job has ended"


def test_a_group_is_one_job_under_one_lease_with_its_classical_rules(project):
    show = "echo $SLURM_JOB_ID $ibm_fez_QRMI_JOB_ACQUISITION_TOKEN > {output}"
    project.write(
        f"""
        localrules: after
        rule all:
            input: "after.txt"
        rule quantum:
            output: "quantum{{i}}.txt"
            group: "g"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "{show}"
        rule sibling:
            output: "sibling.txt"
            group: "g"
            shell: "{show}"
        rule after:
            input: "quantum1.txt", "quantum2.txt", "sibling.txt"
            output: "after.txt"
            group: "g"
            shell: "{show}"
        """
    )
    opened, _ = project.sessions()

    output = project.run()

    shown = {project.read(f"{n}.txt") for n in ("quantum1", "quantum2", "sibling", "after")}
    (job, token), *others = (line.split() for line in shown)
    assert not others
    assert submitted(output) == [job]
    assert token
    assert project.sessions() == (opened + 1, 0)


def test_rules_that_need_a_snakemake_in_the_job_get_one_under_the_lease(project):
    project.write(
        """
        rule all:
            input: "script.txt", "run.txt", "shadow.txt", "benchmark.tsv"
        rule script:
            output: "script.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            script: "script.py"
        rule run:
            output: "run.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            run:
                from qrmi_workflows import open_lease
                with open_lease("ibm_fez") as lease, open(output[0], "w") as file:
                    file.write(lease.qpu)
        rule shadow:
            output: "shadow.txt"
            benchmark: "benchmark.tsv"
            resources: qpu=1, qpu_name="FRESNEL"
            shadow: "minimal"
            shell: "touch here && echo $QRMI_JOB_QPU_RESOURCES {resources.tmpdir} > {output}"
        """,
        script="""
        import os
        open(snakemake.output[0], "w").write(os.environ["QRMI_JOB_QPU_RESOURCES"])
        """,
    )
    opened, _ = project.sessions()

    project.run()

    assert project.read("script.txt") == project.read("run.txt") == "ibm_fez"
    qpu, tmpdir = project.read("shadow.txt").split()
    assert qpu == "FRESNEL"
    assert Path(tmpdir).is_dir()
    assert not (project.folder / "here").exists()
    assert project.read("benchmark.tsv").startswith("s\t")
    assert project.sessions() == (opened + 2, 0)


@pytest.mark.parametrize(
    "option", [[], pytest.param(["--slurm-qpu-nested"], marks=pytest.mark.slow)]
)
def test_a_shell_command_does_the_same_with_and_without_a_snakemake_around_it(project, option):
    project.write(
        """
        shell.prefix("set -euo pipefail; SET=prefix; ")
        rule all:
            input: expand("out/{name}.txt", name=["it's", "a b", "$HOME"])
        rule source:
            output: temp(touch("in/{name}.txt"))
            localrule: True
        rule quantum:
            input: "in/{name}.txt"
            output: protected(ensure("out/{name}.txt", non_empty=True))
            log: "logs/{name}.log"
            params: text=r"back\\slash $PWD 'quoted'"
            threads: 2
            resources: qpu=1, qpu_name="FRESNEL"
            shell:
                '''
                echo {input:q} {params.text:q} {threads} $SET $OMP_NUM_THREADS $(pwd) > {output:q}
                # a comment with an apostrophe: it's one
                echo "$- ${{BASH_VERSION%%.*}}" >> {output:q} 2> {log:q}
                xargs -0 echo < /proc/$PPID/cmdline >> {output:q}
                '''
        """
    )

    project.run(*option)

    for name in ("it's", "a b", "$HOME"):
        first, second, *parent = project.read(f"out/{name}.txt").splitlines()
        text = "back\\slash $PWD 'quoted'"
        assert first == f"in/{name}.txt {text} 2 prefix 2 {project.folder}"
        assert ("-m snakemake" in " ".join(parent)) == bool(option)
        assert set("euh") <= set(second.split()[0])
        assert (project.folder / f"logs/{name}.log").exists()
        assert not (project.folder / f"in/{name}.txt").exists()
        assert (project.folder / f"out/{name}.txt").stat().st_mode & 0o222 == 0


def test_a_failing_command_fails_its_rule_at_once_with_slurms_state(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "touch {output}; false | cat; echo never"
        """
    )

    output = project.run(fails=True)

    assert "SLURM status is: 'FAILED'" in output
    assert not (project.folder / "quantum.txt").exists()
    assert project.sessions()[1] == 0
    assert not project.jobs()


def test_a_bad_payload_fails_in_the_job_and_the_log_says_why(project):
    project.write(
        """
        rule quantum:
            input: "Snakefile"
            output: "result.json"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "qpu run {input} -o {output}"
        """
    )

    output = project.run(fails=True)

    assert "qpu: Snakefile: unknown file format" in output


def test_a_qpu_that_the_vendor_does_not_grant_fails_the_rule(project):
    project.write(WAITING)
    project.control.ask(
        "POST", "/faults", {"kind": "status", "status": 403, "route": "POST */sessions"}
    )
    try:
        output = project.run("quantum.txt", fails=True)
    finally:
        project.control.ask("DELETE", "/faults")

    assert "qpu: QPU 'ibm_fez' could not be acquired: " in output
    assert not (project.folder / "quantum.started").exists()
    assert not project.jobs()


def test_a_qpu_that_is_not_defined_in_the_job_fails_the_rule(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "touch {output}"
        """
    )

    output = project.run(fails=True, QPU_CONFIG="/nonexistent/qrmi_config.json")

    assert "qpu: /nonexistent/qrmi_config.json: No such file or directory" in output


def test_a_failing_rule_is_retried_and_each_attempt_has_a_lease(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez", attempt=lambda wildcards, attempt: attempt
            shell: "test {resources.attempt} = 3 && touch {output}"
        """
    )
    opened, _ = project.sessions()

    output = project.run("--retries", "2")

    assert len(submitted(output)) == 3
    assert project.sessions() == (opened + 3, 0)


def test_a_lease_that_the_site_has_acquired_is_adopted(project, sandbox):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "echo $ibm_fez_QRMI_JOB_ACQUISITION_TOKEN > {output}"
        """
    )
    opened, _ = project.sessions()

    with acquired_by_the_site(sandbox, "ibm_fez"):
        project.run()

    assert project.read("quantum.txt") == "of-the-site\n"
    assert project.sessions() == (opened, 0)


def test_scancel_from_outside_ends_the_lease_and_fails_the_rule(project):
    project.write(WAITING)
    process = project.start()
    wait_until((project.folder / "quantum.started").exists, "the rule's start")

    project.slurm("scancel", *project.jobs())
    output = project.wait(process, fails=True)

    assert "SLURM status is: 'CANCELLED'" in output
    wait_until(lambda: project.sessions()[1] == 0, "the session's end")


def test_a_job_that_is_cancelled_before_it_starts_fails_its_rule(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez", slurm_extra="--hold"
            shell: "touch {output}"
        """
    )
    process = project.start("--slurm-qpu-init-seconds-before-status-checks=3")
    wait_until(lambda: len(project.jobs()) == 1, "the job's submission")

    project.slurm("scancel", *project.jobs())

    assert "SLURM status is: 'CANCELLED'" in project.wait(process, fails=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_snakemake_leaves_no_job_and_no_lease(project, number):
    project.write(WAITING)
    process = project.start()
    wait_until((project.folder / "quantum.started").exists, "the rule's start")

    process.send_signal(number)
    if number == signal.SIGTERM:  # Snakemake lets running jobs end
        (project.folder / "quantum.go").touch()
    project.wait(process, fails=True)

    wait_until(lambda: not project.jobs(), "the jobs' end")
    assert project.sessions()[1] == 0


WAITING = """
rule all:
    input: "quantum.txt", expand("more{i}.txt", i=range(2))
rule quantum:
    output: "quantum.txt"
    priority: 1
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "touch quantum.started; until test -e quantum.go; do sleep 0.05; done; touch {output}"
rule more:
    output: "more{i}.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "touch {output}"
"""
