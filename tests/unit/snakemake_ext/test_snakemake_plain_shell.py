"""Which rules run without a Snakemake in their job, and what their job is told."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.io import AnnotatedString, IOFile, flag
from snakemake.resources import Resource
from snakemake_interface_executor_plugins.settings import SharedFSUsage

from snakemake_executor_plugin_slurm_qpu.plain_shell import (
    describe_job,
    is_plain_shell,
    plain_qpu_run,
    render_shell_command,
)

EXPRESSION = Resource.from_cli_expression
WORKFLOW = SimpleNamespace(
    storage_settings=SimpleNamespace(
        default_storage_provider=None, shared_fs_usage=SharedFSUsage.all()
    ),
    remote_execution_settings=SimpleNamespace(precommand=None, immediate_submit=False),
    deployment_settings=SimpleNamespace(deployment_method=frozenset()),
    workflow_settings=SimpleNamespace(cache=None),
)


def rule(*, tmpdir=None, output=("a.txt",), shellcmd="true"):
    of_rule = SimpleNamespace(
        name="quantum", resources={} if tmpdir is None else {"tmpdir": tmpdir}
    )
    return SimpleNamespace(
        rule=of_rule,
        is_group=lambda: False,
        is_shell=True,
        is_shadow=False,
        is_pipe=False,
        is_service=False,
        benchmark=None,
        resources={},
        input=[],
        output=[IOFile(name, rule=None) for name in output],
        log=[],
        threads=2,
        shellcmd=shellcmd,
    )


@pytest.mark.parametrize(
    ("tmpdir", "known"),
    [
        (None, None),
        (Resource("tmpdir", "/scratch/me"), "/scratch/me"),
        (Resource("tmpdir", "here"), "here"),
        (EXPRESSION("tmpdir", "system_tmpdir"), "system_tmpdir"),
        (EXPRESSION("tmpdir", "'/scratch/it'"), "/scratch/it"),
        (EXPRESSION("tmpdir", "/scratch/me"), "/scratch/me"),
    ],
)
def test_a_tmpdir_that_is_known_is_set_in_a_plain_job(tmpdir, known):
    job = rule(tmpdir=tmpdir)

    assert is_plain_shell(job, WORKFLOW)
    told = describe_job(job, 5)
    assert told["tmpdir"] == known
    assert told["uses_system_tmpdir"] == (known == "system_tmpdir")


@pytest.mark.parametrize(
    "tmpdir",
    [
        Resource("tmpdir", lambda wildcards: "/scratch"),
        EXPRESSION("tmpdir", "/scratch/$SLURM_JOB_ID"),
        EXPRESSION("tmpdir", "'/scratch/' + wildcards.name"),
        EXPRESSION("tmpdir", "~/tmp"),
    ],
    ids=["function", "variable", "expression", "home"],
)
def test_a_tmpdir_that_only_the_node_can_tell_needs_a_snakemake_there(tmpdir):
    assert not is_plain_shell(rule(tmpdir=tmpdir), WORKFLOW)


def test_an_output_that_is_updated_in_place_needs_a_snakemake_which_backs_it_up():
    assert not is_plain_shell(rule(output=[flag("a.txt", "update")]), WORKFLOW)


@pytest.mark.parametrize("length", [10, 10_000_000])
def test_a_command_may_have_any_length(length):
    assert is_plain_shell(rule(shellcmd="x" * length), WORKFLOW)


def test_the_description_survives_json_with_directories_and_odd_names():
    names = [AnnotatedString("d"), "caf\u00e9 \udcff"]
    job = rule(output=[flag(names[0], "directory"), names[1]])

    told = json.loads(json.dumps(describe_job(job, 5)))

    assert told["outputs"] == ["d", names[1]]
    assert told["directories"] == ["d"]
    assert told["folder"] == str(Path.cwd())
    assert told["latency_wait"] == 5
    assert set(told["variables"].values()) == {"2"}


PREFIX = "set -euo pipefail; "


@pytest.mark.parametrize(
    "command",
    [
        "qpu run bell.json -o bell.result.json",
        "qpu run a/b-1.json  -o 'with space.json' --qpu ibm_fez --shots=100",
        "\n  qpu run x@%+=:,.json -o r.json\n",
    ],
)
def test_a_plain_qpu_run_needs_no_shell(command):
    argv = plain_qpu_run("/bin/bash", PREFIX + command)

    shown = subprocess.run(
        ["/bin/bash", "-c", f"{PREFIX}qpu() {{ printf '%s\\0' qpu \"$@\"; }}; {command.strip()}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert argv == shown.split("\0")[:-1]
    assert argv[:2] == ["qpu", "run"]


@pytest.mark.parametrize(
    "command",
    [
        "qpu run $FILE -o r.json",
        "qpu run *.json -o r.json",
        "qpu run ~/a.json -o r.json",
        "qpu run {a,b}.json -o r.json",
        'qpu run "a.json" -o r.json',
        "qpu run a\\ b.json -o r.json",
        "qpu run a.json -o r.json > log",
        "qpu run a.json -o r.json &",
        "qpu run a.json -o r.json; qpu run b.json -o s.json",
        "qpu run a.json -o r.json\nqpu run b.json -o s.json",
        "qpu run a.json -o r.json && true",
        "qpu run a.json -o `name`",
        "qpu run a.json # -o r.json",
        "A=1 qpu run a.json -o r.json",
        "time qpu run a.json -o r.json",
        "qpu list",
        "/opt/bin/qpu run a.json -o r.json",
        "qpu run 'a\nb' -o r.json",
        "qpu run 'a -o r.json",
        "",
    ],
)
def test_any_other_command_keeps_its_shell(command):
    assert plain_qpu_run("/bin/bash", PREFIX + command) is None


def test_a_long_command_is_recognised_as_fast_as_a_short_one():
    for command in (f"cat {'a.out ' * 1000}> b.out", f"cp {'a' * 100_000} 'b"):
        assert plain_qpu_run("/bin/bash", PREFIX + command) is None


def test_a_command_keeps_a_shell_or_a_prefix_of_its_own():
    assert plain_qpu_run("/bin/zsh", "qpu run a.json -o r.json") is None
    assert plain_qpu_run("/bin/bash", "source env.sh; qpu run a.json -o r.json") is None


def test_it_is_recognised_as_snakemake_renders_it():
    job = rule(shellcmd="qpu run a.json -o r.json")

    assert plain_qpu_run(*render_shell_command(job)) == job.shellcmd.split()
