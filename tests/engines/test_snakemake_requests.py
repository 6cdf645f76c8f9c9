"""A request for a QPU that cannot be met ends the workflow before any job is submitted."""

from __future__ import annotations

import json
import os
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
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),  # Snakemake's own
]

ONE_OF = "must be one of: FRESNEL, ibm_fez."
BAD = {
    'qpu=1, qpu_name="ibm_fes"': rf"unknown QPU 'ibm_fes' .*{ONE_OF} Did you",
    'qpu=1, qpu_name="torino"': rf"unknown QPU 'torino' .*{ONE_OF} `qpu list`",
    "qpu=1, qpu_name=7": rf"qpu=1 with qpu_name=7; the name {ONE_OF} Add qpu_name",
    "qpu=1": rf"qpu=1 with qpu_name=None; the name {ONE_OF} Add qpu_name",
    'qpu=-1, qpu_name="ibm_fez"': r"qpu=-1 for QPU 'ibm_fez': must be a positive integer",
    'qpu="one", qpu_name="ibm_fez"': r"qpu='one' for QPU 'ibm_fez': must be a positive integer",
    'qpu=True, qpu_name="ibm_fez"': r"qpu=True for QPU 'ibm_fez': must be a positive integer",
    'qpu=0.5, qpu_name="ibm_fez"': r"qpu=0\.5: must be a positive integer.* would round it to 0",
    'qpu=lambda wildcards: 1.5, qpu_name="ibm_fez"': r"qpu=1\.5: must be .* would round it to 2",
    'qpu_name="ibm_fez"': r"it sets qpu_name='ibm_fez' but not `qpu`, .* Add qpu=1",
    'qpu=None, qpu_name="ibm_fez"': r"it sets qpu_name='ibm_fez' but not `qpu`, .* Add qpu=1",
    'qpu=1, qpu_name="ibm_fez", qpu_coalesce=7': r"qpu_coalesce=7: must be 1 or 0. Write",
    "qpu_coalesce=1": r"it sets qpu_coalesce=1 but not `qpu`, .* Add qpu=1",
    "qpu_exclusive=1": r"it sets qpu_exclusive=1 but not `qpu`, .* Add qpu=1",
    'qpu=2, qpu_name="ibm_fez"': r"qpu=2 for QPU 'ibm_fez': no node .* has more than 1 of GRES",
    'qpu=1, qpu_name="ibm_fez", gres="tape:1"': r"gres='tape:1' and qpu=1; .*Remove `gres`",
    'qpu=1, qpu_name="ibm_fez", slurm_extra="-x n1 --licenses=a"': r"--licenses would override",
    'qpu=1, qpu_name="ibm_fez"\n                threads: 9': r"for 9 CPUs, .* more than 8. Lower",
    'qpu=1, qpu_name="ibm_fez", slurm_extra="-L a:1"': r"-L would override the request .*Remove -L",
}
"""The resources of a rule, and the message that refuses them."""


def run(folder: Path, snakefile: str) -> None:
    """Run a workflow in this process, so that its exception reaches the test."""
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


def jobs(sandbox: Sandbox, folder: Path) -> set[str]:
    """Return all jobs that Slurm remembers, those of other tests included."""
    project = Project(folder, sandbox)
    return set(project.slurm("squeue", "--noheader", "--states=all", "--format=%A").split())


@pytest.mark.parametrize("resources", BAD)
def test_the_message_names_the_value_what_is_allowed_and_what_to_do(
    in_sandbox, tmp_path, resources
):
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

    assert jobs(in_sandbox, tmp_path) <= before  # Slurm may have forgotten some


def test_a_group_that_asks_for_two_qpus_is_refused(in_sandbox, tmp_path):
    with pytest.raises(WorkflowError, match=r"asks for the QPUs FRESNEL, ibm_fez, but none of its"):
        run(
            tmp_path,
            """
            rule all:
                input: "b.txt"
            rule a:
                output: "a.txt"
                group: "g"
                resources: qpu=1, qpu_name="ibm_fez"
                shell: "touch {output}"
            rule b:
                input: "a.txt"
                output: "b.txt"
                group: "g"
                resources: qpu=1, qpu_name="FRESNEL"
                shell: "touch {output}"
            """,
        )


def test_a_group_with_more_cpus_than_a_node_has_is_refused(in_sandbox, tmp_path):
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


def test_a_localrule_with_a_qpu_is_refused_because_it_would_run_without_a_lease(
    in_sandbox, tmp_path
):
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


def test_a_qpu_in_the_site_policy_that_slurm_does_not_have_is_refused(
    in_sandbox, tmp_path, monkeypatch
):
    site = tmp_path / "site.toml"
    site.write_text('[defaults]\ngres = "qpu:{qpu}"\n[qpus.ibm_fez]\n[qpus.torino]\n')
    monkeypatch.setenv("QPU_SITE", str(site))

    document = json.loads(Path(os.environ["QPU_CONFIG"]).read_text())
    document["resources"][0]["name"] = "torino"
    (tmp_path / "qrmi_config.json").write_text(json.dumps(document))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))

    with pytest.raises(WorkflowError, match=r"no node of this Slurm has GRES 'qpu:torino'"):
        run(tmp_path, QUANTUM.replace("ibm_fez", "torino"))


@pytest.mark.parametrize(
    ("limits", "resources", "message"),
    [
        ('users = ["no-such-user"]', "", "may not use it; must be one of: no-such-user"),
        ('accounts = ["chem"]', ', slurm_account="bio"', "jobs of account 'bio' may not use it"),
        (
            'accounts = ["chem"]',
            ', slurm_account="chem", slurm_partition="other"',
            "partition 'other' does not grant it; must be one of: main",
        ),
    ],
)
def test_who_may_not_use_a_qpu_is_refused(
    in_sandbox, tmp_path, monkeypatch, limits, resources, message
):
    site = tmp_path / "site.toml"
    licence = 'licence = "qpu_{qpu}"\npartition = "main"'
    site.write_text(f"[qpus.ibm_fez]\n{licence}\n{limits}\n")
    monkeypatch.setenv("QPU_SITE", str(site))

    with pytest.raises(WorkflowError, match=message):
        run(tmp_path, QUANTUM.replace('"ibm_fez"', f'"ibm_fez"{resources}'))


def test_a_qpu_in_the_site_policy_that_is_not_defined_is_refused(in_sandbox, tmp_path, monkeypatch):
    document = json.loads(Path(os.environ["QPU_CONFIG"]).read_text())
    document["resources"] = [qpu for qpu in document["resources"] if qpu["name"] != "ibm_fez"]
    config = tmp_path / "qrmi_config.json"
    config.write_text(json.dumps(document))
    monkeypatch.setenv("QPU_CONFIG", str(config))

    with pytest.raises(
        WorkflowError, match=rf"'ibm_fez': {config} does not define it.*: FRESNEL\."
    ):
        run(tmp_path, QUANTUM)


def test_a_profile_may_name_a_qpu_for_the_rules_that_ask_for_one(sandbox, tmp_path):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule all:
            input: "quantum.txt", "classical.txt", "switched.txt", "a.txt"
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1
            shell: "echo $QRMI_JOB_QPU_RESOURCES > {output}"
        rule classical:
            output: "classical.txt"
            localrule: True
            shell: "touch {output}"
        rule switched:
            output: "switched.txt"
            localrule: True
            resources: qpu=lambda wildcards: 0, qpu_name="FRESNEL", qpu_exclusive=1
            shell: "touch {output}"
        rule a:
            input: "b.txt"
            output: "a.txt"
            group: "g"
            resources: qpu=1
            shell: "touch {output}"
        rule b:
            output: "b.txt"
            group: "g"
            resources: qpu_name="ibm_fez"
            shell: "touch {output}"
        """
    )

    named = ("--default-resources", "qpu_name='ibm_fez'")
    project.run(*named, "qpu=0")
    assert project.read("quantum.txt") == "ibm_fez\n"

    output = project.run("--forceall", *named, "qpu=0.5", fails=True)
    assert "qpu=0.5: must be a positive integer" in output


def test_the_only_qpu_of_a_site_does_not_have_to_be_named(in_sandbox, tmp_path, monkeypatch):
    site = tmp_path / "site.toml"
    site.write_text('[qpus.ibm_fez]\ngres = "qpu:ibm_fez"\n')
    monkeypatch.setenv("QPU_SITE", str(site))

    run(tmp_path, QUANTUM.replace(', qpu_name="ibm_fez"', ", qpu_exclusive=1"))

    assert (tmp_path / "quantum.txt").exists()


def test_a_request_may_depend_on_a_file_that_the_workflow_creates(in_sandbox, tmp_path):
    run(
        tmp_path,
        """
        rule quantum:
            input: "name.txt"
            output: "quantum.txt"
            resources: qpu=1, qpu_name=lambda wildcards, input: open(input[0]).read()
            shell: "echo {resources.qpu_name} > {output}"
        rule name:
            output: "name.txt"
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
    """Both show their sbatch call when Slurm rejects it."""
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

    same = {"PYTHONHASHSEED": "0"}  # because Snakemake renders sets
    options = ("status-command=squeue", "init-seconds-before-status-checks=1")
    ours = project.run(fails=True, **same)
    stock = project.run(
        "--executor", "slurm", *(f"--slurm-{option}" for option in options), fails=True, **same
    )

    assert "--executor slurm-jobstep" in call(ours)
    assert call(ours) == call(stock)


def call(output: str) -> str:
    """Return the sbatch call in a run's output, without the names that differ in each run."""
    (line,) = [line for line in output.splitlines() if line.strip().startswith("sbatch --parsable")]
    return re.sub(r"[0-9a-f-]{36}|\btmp[.\w]+", "…", line)


@pytest.mark.parametrize("group", ["", 'group: "g"'])
def test_a_failing_sbatch_fails_the_job_and_ends_the_run(sandbox, tmp_path, group):
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


def test_a_failing_submission_of_a_group_without_a_qpu_does_not_hang_either(sandbox, tmp_path):
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


def test_jobs_with_a_qpu_are_never_submitted_as_an_array(sandbox, tmp_path):
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

    # --resources limits the whole workflow; it is not a request for a QPU.
    project.run("--slurm-qpu-array-jobs", "all", "--resources", "qpu=1")

    assert [project.read(f"{i}.txt") for i in range(2)] == ["0 none\n", "1 none\n"]


def test_without_slurm_the_first_message_names_the_missing_command(tmp_path, monkeypatch):
    which = shutil.which("which")  # the stock plugin needs it
    assert which is not None
    (tmp_path / "which").symlink_to(which)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(WorkflowError, match=r"command 'scontrol' not found on PATH. Install"):
        run(tmp_path, QUANTUM)
