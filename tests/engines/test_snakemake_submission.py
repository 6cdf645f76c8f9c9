"""How jobs reach Slurm: lost answers, unusual names, and the lease that Snakemake runs under."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from snakemake_runs import Project, submitted

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

IMPATIENT = """
import sys
from snakemake.cli import main
from snakemake_executor_plugin_slurm_qpu import executor
executor.SBATCH_SECONDS = {seconds}
sys.argv[0] = "snakemake"
main()
"""
QUANTUM = """
rule quantum:
    output: "quantum.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "echo $SLURM_JOB_ID >> {output}"
"""


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow's folder."""
    return Project.on_idle_slurm(tmp_path, sandbox)


def impatient(seconds: float) -> tuple[str, str]:
    """Return what runs a Snakemake that does not wait longer for sbatch."""
    return "-c", IMPATIENT.format(seconds=seconds)


def sbatch(project: Project, does: str) -> str:
    """Put a script in front of the real sbatch (`$SBATCH` in it); return the PATH to use."""
    real = shutil.which("sbatch", path=project.environ["PATH"])
    wrapper = project.folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\nSBATCH={real}\n{does}\n")
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{project.environ['PATH']}"


@pytest.mark.parametrize(
    ("does", "group"),
    [
        ("exec sleep 60", ""),
        ("exec sleep 60", 'group: "g"'),
        ('echo "Socket timed out on send/recv operation" >&2; exit 1', ""),
        ('echo "a greeting of the site, and no id"', ""),
    ],
    ids=["hangs", "hangs for a group", "fails", "prints no id"],
)
def test_a_job_that_slurm_has_accepted_without_an_answer_is_found(project, does, group):
    project.write(QUANTUM.replace("    resources", f"    {group}\n    resources"))
    opened, _ = project.sessions()

    # On a loaded machine, the real sbatch needs seconds.
    output = project.run(
        program=impatient(10.0), PATH=sbatch(project, f'"$SBATCH" "$@" >/dev/null; {does}')
    )

    assert [project.read("quantum.txt").strip()] == submitted(output)
    assert project.sessions() == (opened + 1, 0)


def test_an_sbatch_that_hangs_before_it_submits_fails_the_job(project):
    project.write(QUANTUM)

    output = project.run(fails=True, program=impatient(3.0), PATH=sbatch(project, "exec sleep 60"))

    assert "`sbatch` did not end within 3 s" in output
    assert not project.jobs()


SHOWN = "(env; scontrol show job $SLURM_JOB_ID) > {output}"


def test_no_job_inherits_the_lease_that_snakemake_itself_runs_under(project):
    project.write(
        f"""
        rule all:
            input: "classical.txt", "quantum.txt"
        rule classical:
            output: "classical.txt"
            shell: "{SHOWN}"
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "{SHOWN}"
        """
    )
    own = ("-m", "qrmi_workflows", "lease", "exec", "--qpu", "FRESNEL", "--step", "heads", "--")

    opened, _ = project.sessions()
    program = (*own, sys.executable, "-m", "snakemake")
    project.run("--slurm-qpu-mark-all", program=program)

    for name in ("classical", "quantum"):
        inherited = [
            line
            for line in project.read(f"{name}.txt").splitlines()
            if "FRESNEL" in line.partition("=")[0] or "=heads" in line
        ]
        assert inherited == []
    assert "QRMI_JOB_QPU_RESOURCES" not in project.read("classical.txt")
    assert "QRMI_JOB_QPU_RESOURCES=ibm_fez\n" in project.read("quantum.txt")
    assert project.sessions() == (opened + 1, 0)  # a lease of FRESNEL opens none


ODD = (
    r"""it's "so" $HOME `id` $(id) \ %j; & x=y | * ? #!~ ü""",
    "two\nlines",
    "-o",
)
NAMED = """
wildcard_constraints: name="[^/]+"
rule all:
    input: [f"out/{{name}}.txt" for name in {names!r}]
rule source:
    output: "in/{{name}}.txt"
    localrule: True
    run:
        with open(output[0], "w") as file:
            file.write(wildcards.name)
rule quantum:
    input: "in/{{name}}.txt"
    output: "out/{{name}}.txt"
    resources: qpu=1, qpu_name="FRESNEL"
    {directive}
"""
CARRY = """
with open(snakemake.input[0]) as source, open(snakemake.output[0], "w") as copy:
    copy.write(source.read())
"""


@pytest.mark.parametrize("directive", ['shell: "cp -- {input:q} {output:q}"', 'script: "carry.py"'])
def test_files_and_wildcards_may_have_any_character(project, directive):
    project.write(NAMED.format(names=ODD, directive=directive), carry=CARRY)

    project.run()

    assert {path.name for path in (project.folder / "out").iterdir()} == {f"{n}.txt" for n in ODD}
    assert all(project.read(f"out/{name}.txt") == name for name in ODD)


@pytest.mark.parametrize("directive", ['shell: "touch {output}"', 'script: "touch.py"'])
def test_a_workflow_and_its_workdir_may_have_any_name(tmp_path, sandbox, directive):
    folder = tmp_path / """it's "so" $HOME; a b"""
    folder.mkdir()
    project = Project(folder, sandbox)
    project.write(
        f"""
        workdir: "work 'dir' $x"
        rule quantum:
            output: "quantum.txt"
            log: "logs/a log.txt"
            params: text="two\\nlines"
            resources: qpu=1, qpu_name="FRESNEL"
            {directive}
        """,
        touch="open(snakemake.output[0], 'w').close()",
    )

    project.run()

    assert (folder / "work 'dir' $x/quantum.txt").exists()


@pytest.mark.parametrize(
    ("name", "directive", "options"),
    [
        ("a,b", 'script: "carry.py"', ()),
        ("a,b", 'group: "g"\n    shell: "cp {input:q} {output:q}"', ()),
        ("'a'", 'shell: "cp {input:q} {output:q}"', ("--slurm-qpu-nested",)),
    ],
    ids=["script", "group", "nested"],
)
def test_a_wildcard_that_a_snakemake_in_the_job_would_misread_is_refused(
    project, name, directive, options
):
    project.write(NAMED.format(names=[name], directive=directive), carry=CARRY)

    output = project.run(*options, fails=True)

    assert f"rule 'quantum': wildcard name={name!r} must not contain a comma" in output
    assert "has been submitted" not in output


def test_a_plain_shell_rule_may_have_such_wildcards(project):
    directive = 'shell: "cp {input:q} {output:q}"'
    project.write(NAMED.format(names=["a,b", "'a'"], directive=directive))

    project.run()

    assert project.read("out/a,b.txt") == "a,b"
    assert project.read("out/'a'.txt") == "'a'"


LATE = """
rule all:
    input: "good.txt", "classical.txt", "mended.txt", "unknown.txt", "group.txt", "refused.txt"
rule names:
    output: "none.txt", "fez.txt"
    localrule: True
    run:
        for name, file in zip(("ibm_fes", "ibm_fez"), output):
            open(file, "w").write(name)
rule good:
    input: "none.txt"
    output: "good.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "touch {output}"
rule classical:
    input: "none.txt"
    output: "classical.txt"
    shell: "touch {output}"
rule mended:
    input: "none.txt", "fez.txt"
    output: "mended.txt"
    resources: qpu=1, qpu_name=lambda wildcards, input, attempt: open(input[attempt - 1]).read()
    shell: "touch {output}"
rule unknown:
    input: "none.txt"
    output: "unknown.txt"
    resources: qpu=1, qpu_name=lambda wildcards, input: open(input[0]).read()
    run:
        shell("touch {output}")
rule group:
    input: "none.txt"
    output: "group.txt"
    group: "g"
    resources: qpu=lambda wildcards, input: len(open(input[0]).read()), qpu_name="ibm_fez"
    shell: "touch {output}"
rule refused:
    input: "none.txt"
    output: "refused.txt"
    resources: qpu=1, qpu_name="ibm_fez", constraint="nosuch"
    shell: "touch {output}"
"""


def test_a_request_that_turns_out_bad_late_fails_its_rule_alone_and_may_be_mended(project):
    """What Slurm refuses is no different."""
    project.write(LATE)

    output = project.run(
        "--keep-going", "--retries", "1", "--slurm-qpu-mark-all", "--quiet", "host", fails=True
    )

    assert {path.stem for path in project.folder.glob("*.txt")} == {
        "none", "fez", "good", "classical", "mended",
    }  # fmt: skip
    assert output.count("Job submission failed: rule 'mended': unknown QPU 'ibm_fes'") == 1
    assert output.count("Job submission failed: rule 'unknown': unknown QPU 'ibm_fes'") == 2
    assert "rule 'group': qpu=7 for QPU 'ibm_fez': no node" in output
    assert output.count("Job submission failed: `sbatch ") == 2
    assert len(submitted(output)) == 2
    assert "Exiting because a job execution failed" in output


WIDE = """
import os
TEXT = "it's \u4e2d" * 30000
SHOW = "echo $TMPDIR $TMP $TEMP $TEMPDIR $(mktemp -u)"
rule all:
    input: expand("{name}.txt", name=["long", "nested", "mine", "system", "classical"])
rule long:
    output: "long.txt"
    params: text=TEXT
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "x={params.text:q}; echo ${{#x}} > {output}"
rule mine:
    output: "mine.txt"
    resources: qpu=1, qpu_name="FRESNEL", tmpdir=os.path.abspath("mine")
    shell: SHOW + " > {output}"
rule system:
    output: "system.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: SHOW + " > {output}"
rule classical:
    output: "classical.txt"
    resources: tmpdir=os.path.abspath("mine")
    shell: SHOW + " > {output}"
rule nested:
    output: "nested.txt"
    group: "g"
    resources: qpu=1, qpu_name="FRESNEL"
    shell: SHOW + " > {output}"
"""


def tmpdirs(project: Project, rule: str) -> set[str]:
    """Return the values of the four variables, and where mktemp puts a file."""
    *named, made = project.read(f"{rule}.txt").split()
    return {*named, str(Path(made).parent)} if len(named) == 4 else set()


def test_a_command_may_be_long_and_the_tmpdir_and_the_folder_any(tmp_path, sandbox):
    folder = tmp_path / "10%j_5%s"
    folder.mkdir()
    project = Project(folder, sandbox)
    project.write(WIDE)

    output = project.run(
        "--slurm-qpu-mark-all",
        "--slurm-qpu-keep-successful-logs",
        LC_ALL="C.UTF-8",
    )

    assert project.read("long.txt") == f"{6 * 30_000}\n"
    for rule in ("mine", "classical"):
        assert tmpdirs(project, rule) == {str(folder / "mine")}
    for rule in ("system", "nested"):  # Python's own choice, as under the stock executor
        assert tmpdirs(project, rule) == {tempfile.gettempdir()}
    logs = {file.parent.name for file in (folder / ".snakemake/slurm_logs").rglob("[0-9]*.log")}
    assert {"rule_long", "rule_mine", "rule_classical", "group_g_nested"} <= logs
    assert len(submitted(output)) == 4
