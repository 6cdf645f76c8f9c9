"""A request for a QPU that cannot be met ends the workflow before anything is submitted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
from snakemake import api
from snakemake.settings import types as settings
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_runs import Project

from qrmi_workflows.sandbox import Sandbox
from snakemake_executor_plugin_slurm_qpu import ExecutorSettings

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),  # Snakemake's own
]

BAD = {
    'qpu=1, qpu_name="ibm_fes"': r"unknown QPU 'ibm_fes' .*must be one of: FRESNEL, ibm_fez. Did you",
    'qpu=1, qpu_name="torino"': r"unknown QPU 'torino' .*must be one of: FRESNEL, ibm_fez. `qpu list`",
    "qpu=1, qpu_name=7": r"qpu=1 with qpu_name=7; the name must be one of: FRESNEL, ibm_fez. Add qpu_name",
    "qpu=1": r"qpu=1 with qpu_name=None; the name must be one of: FRESNEL, ibm_fez. Add qpu_name",
    'qpu=-1, qpu_name="ibm_fez"': r"qpu=-1 for QPU 'ibm_fez': must be a positive integer",
    'qpu="one", qpu_name="ibm_fez"': r"qpu='one' for QPU 'ibm_fez': must be a positive integer",
    'qpu=True, qpu_name="ibm_fez"': r"qpu=True for QPU 'ibm_fez': must be a positive integer",
    'qpu=2, qpu_name="ibm_fez"': r"qpu=2 for QPU 'ibm_fez': no node .* has more than 1 of GRES",
    'qpu=1, qpu_name="ibm_fez", gres="tape:1"': r"gres='tape:1' and for qpu=1; .*Remove `gres`",
    'qpu=1, qpu_name="ibm_fez", slurm_extra="-x n1 --licenses=a"': r"--licenses would override the req",
    'qpu=1, qpu_name="ibm_fez"\n                threads: 9': r"for 9 CPUs, .* more than 8. Lower",
    'qpu=1, qpu_name="ibm_fez", slurm_extra="-L a:1"': r"-L would override the request .*Remove -L",
}


def run(folder: Path, snakefile: str) -> None:
    """Run a workflow in this process, to see the exception itself."""
    (folder / "Snakefile").write_text(dedent(snakefile))
    with api.SnakemakeApi(settings.OutputSettings(quiet={settings.Quietness.ALL})) as snakemake:
        workflow = snakemake.workflow(
            resource_settings=settings.ResourceSettings(nodes=4),
            snakefile=folder / "Snakefile",
            workdir=folder,
        )
        workflow.dag().execute_workflow(
            executor="slurm-qpu", executor_settings=ExecutorSettings(status_command="squeue")
        )


def jobs(sandbox: Sandbox, folder: Path) -> list[str]:
    """Return all jobs that Slurm remembers, from before the test too."""
    project = Project(folder, sandbox)
    return project.slurm("squeue", "--noheader", "--states=all", "--format=%A").split()


@pytest.mark.parametrize("resources", BAD)
def test_it_names_the_value_what_is_allowed_and_what_to_do(in_sandbox, tmp_path, resources):
    before = jobs(in_sandbox, tmp_path)

    with pytest.raises(WorkflowError, match=rf"^rule 'quantum': .*{BAD[resources]}"):
        run(
            tmp_path,
            f"""
            rule quantum:
                input: "classical.txt"
                output: "quantum.txt"
                resources: {resources}
                shell: "touch {{output}}"
            rule classical:
                output: "classical.txt"
                shell: "touch {{output}}"
            """,
        )

    assert jobs(in_sandbox, tmp_path) == before


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('qpu=1, qpu_name="FRESNEL"', "asks for the QPUs FRESNEL, ibm_fez; .* one QPU is allowed"),
        ('qpu=0, qpu_name="FRESNEL"', "has qpu_name='FRESNEL', but the group asks for QPU 'ibm_"),
    ],
)
def test_a_group_for_two_qpus_is_refused(in_sandbox, tmp_path, second, message):
    with pytest.raises(WorkflowError, match=message):
        run(
            tmp_path,
            f"""
            rule all:
                input: "b.txt"
            rule a:
                output: "a.txt"
                group: "g"
                resources: qpu=1, qpu_name="ibm_fez"
                shell: "touch {{output}}"
            rule b:
                input: "a.txt"
                output: "b.txt"
                group: "g"
                resources: {second}
                shell: "touch {{output}}"
            """,
        )


def test_a_group_of_more_cpus_than_a_node_has_is_refused(in_sandbox, tmp_path):
    with pytest.raises(WorkflowError, match=r"^group 'g': it asks for 10 CPUs, .* than 8. Lower"):
        run(
            tmp_path,
            """
            rule after:
                input: "1.txt", "2.txt"
                output: "after.txt"
                group: "g"
                shell: "touch {output}"
            rule quantum:
                output: "{i}.txt"
                group: "g"
                threads: 5
                resources: qpu=1, qpu_name="ibm_fez"
                shell: "touch {output}"
            """,
        )


def test_a_localrule_with_a_qpu_is_refused_as_it_would_run_without_one(in_sandbox, tmp_path):
    with pytest.raises(WorkflowError, match=r"'quantum' is a localrule .* qpu=1.*Take it"):
        run(
            tmp_path,
            """
            rule quantum:
                output: "quantum.txt"
                localrule: True
                resources: qpu=1, qpu_name="ibm_fez"
                shell: "touch {output}"
            """,
        )


QUANTUM = """
rule quantum:
    output: "quantum.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "touch {output}"
"""


def test_a_missing_site_policy_is_refused(in_sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "none.toml"))

    with pytest.raises(WorkflowError, match=r"none.toml: No such file .*Name a file"):
        run(tmp_path, QUANTUM)


def test_a_qpu_that_the_site_promises_and_slurm_does_not_have_is_refused(
    in_sandbox, tmp_path, monkeypatch
):
    site = tmp_path / "site.toml"
    site.write_text('[defaults]\ngres = "qpu:{qpu}"\n[qpus.ibm_fez]\n[qpus.torino]\n')
    monkeypatch.setenv("QPU_SITE", str(site))

    with pytest.raises(
        WorkflowError, match="no node has GRES 'qpu:torino'; must be one of: FRESNEL, ibm"
    ):
        run(tmp_path, QUANTUM.replace("ibm_fez", "torino"))


def test_the_only_qpu_of_a_site_need_not_be_named(in_sandbox, tmp_path, monkeypatch):
    site = tmp_path / "site.toml"
    site.write_text('[qpus.ibm_fez]\ngres = "qpu:ibm_fez"\n')
    monkeypatch.setenv("QPU_SITE", str(site))

    run(tmp_path, QUANTUM.replace(', qpu_name="ibm_fez"', ", qpu_exclusive=1"))

    assert (tmp_path / "quantum.txt").exists()


def test_a_request_may_depend_on_a_file_that_the_workflow_makes(in_sandbox, tmp_path):
    run(
        tmp_path,
        """
        rule quantum:
            input: "wanted.txt"
            output: "quantum.txt"
            resources: qpu=1, qpu_name=lambda wildcards, input: open(input[0]).read()
            shell: "echo {resources.qpu_name} > {output}"
        rule wanted:
            output: "wanted.txt"
            localrule: True
            run:
                with open(output[0], "w") as file:
                    file.write("FRESNEL")
        """,
    )

    assert (tmp_path / "quantum.txt").read_text() == "FRESNEL\n"


def test_the_user_sees_one_message_without_a_traceback(sandbox, tmp_path):
    project = Project(tmp_path, sandbox)
    project.write(QUANTUM.replace("ibm_fez", "ibm_fess"))

    output = project.run(fails=True)

    assert output.rstrip().splitlines()[-2] == "QPURequestError:"
    assert output.rstrip().splitlines()[-1].startswith("rule 'quantum': unknown QPU 'ibm_fess' in")


def test_a_rule_without_a_qpu_is_submitted_as_by_the_stock_executor(sandbox, tmp_path):
    """Seen in the calls of sbatch that each shows when it is refused."""
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule classical:
            output: "classical.txt"
            threads: 2
            resources: mem_mb=100, gpu=1, slurm_partition="absent"
            shell: "touch {output}"
        """
    )

    same = {"PYTHONHASHSEED": "0"}  # Snakemake renders sets
    options = ("status-command=squeue", "init-seconds-before-status-checks=1")
    ours = project.run(fails=True, **same)
    stock = project.run(
        "--executor", "slurm", *(f"--slurm-{option}" for option in options), fails=True, **same
    )

    assert "--executor slurm-jobstep" in call(ours)
    assert call(ours) == call(stock)


def call(output: str) -> str:
    """Return the call of sbatch in a run's output, without the names that differ by chance."""
    (line,) = [line for line in output.splitlines() if line.strip().startswith("sbatch --parsable")]
    return re.sub(r"[0-9a-f-]{36}|\btmp[.\w]+", "…", line)


@pytest.mark.parametrize("group", ["", 'group: "g"'])
def test_a_failing_sbatch_fails_the_job_and_the_run_ends(sandbox, tmp_path, group):
    project = Project(tmp_path, sandbox)
    project.write(
        f"""
        rule quantum:
            output: "quantum.txt"
            {group}
            resources: qpu=1, qpu_name="ibm_fez", slurm_partition="it's gone; exit"
            shell: "touch {{output}}"
        """
    )

    output = project.run(fails=True)

    assert "`sbatch --parsable` failed with exit status 1" in output
    assert "invalid partition specified: it's gone; exit" in output


def test_a_group_without_a_qpu_whose_submission_fails_does_not_hang_either(sandbox, tmp_path):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule classical:
            output: "classical.txt"
            group: "g"
            resources: slurm_extra="--comment=mine"
            shell: "touch {output}"
        """
    )

    assert "comment option is not allowed" in project.run(fails=True)


def test_jobs_of_a_qpu_are_never_put_into_an_array(sandbox, tmp_path):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule all:
            input: expand("{i}.txt", i=range(2))
        rule quantum:
            output: "{i}.txt"
            resources: qpu=1, qpu_name="FRESNEL"
            shell: "echo {wildcards.i} ${{SLURM_ARRAY_JOB_ID-none}} > {output}"
        """
    )

    # --resources caps the whole workflow, and is no request of its own.
    project.run("--slurm-qpu-array-jobs", "all", "--resources", "qpu=1")

    assert [project.read(f"{i}.txt") for i in range(2)] == ["0 none\n", "1 none\n"]


def test_without_slurm_the_first_message_says_what_is_absent(tmp_path, monkeypatch):
    which = shutil.which("which")  # the stock plugin cannot do without it
    assert which is not None
    (tmp_path / "which").symlink_to(which)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(WorkflowError, match=r"command 'scontrol' not found on PATH. Install"):
        run(tmp_path, QUANTUM)
