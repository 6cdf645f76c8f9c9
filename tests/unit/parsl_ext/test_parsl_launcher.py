"""The command that `LeaseLauncher` gives a block's supervisor, run by a real shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from parsl.launchers import SimpleLauncher, SingleNodeLauncher, SrunLauncher

from parsl_ext import LeaseLauncher

COMMANDS = {
    "qpu": """#!/bin/sh
echo "$@" | sed 's/ -- .*//;q' >argv-qpu
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
""",
    "srun": """#!/bin/sh
shift 3
exec "$@"
""",
}


def run(folder: Path, block: str, **environ: str) -> str:
    """Run a block's lines with a stand-in for `qpu`; return what the worker pool prints."""
    for name, script in COMMANDS.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    argv = ["bash", "-c", block]
    return subprocess.run(
        argv, env=environ, cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("requested", "used", "left", "expected"),
    [
        ("500", "200", "400", "300"),
        ("500", "20", "", "480"),
        ("500", "", "", "500"),
        ("500", "900", "100", "1"),
        ("None", "600", "6600", "6540"),
        ("None", "20", "580", "520"),
        ("None", "10", "110", "98"),
        ("None", "595", "5", "1"),
        ("None", "20", "", "None"),
        ("None", "", "", "None"),
    ],
)
def test_the_drain_period_counts_from_the_start_of_the_job(
    tmp_path, requested, used, left, expected
):
    launcher = LeaseLauncher(qpu="a", inner=SimpleLauncher())
    block = launcher(f"echo --drain_period={requested} --cpu-affinity none", 1, 1)

    out = run(tmp_path, block, QPU_JOB_USED=used, QPU_JOB_LEFT=left)

    assert out == f"--drain_period={expected} --cpu-affinity none\n"
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --job-time --qpu=a\n"


@pytest.mark.parametrize("inner", [SingleNodeLauncher(debug=False), SimpleLauncher(), None])
def test_the_command_reaches_the_workers_unchanged(tmp_path, inner):
    launcher = LeaseLauncher(qpu="a", inner=inner)

    out = run(tmp_path, launcher("echo '$HOME {x}' \"`echo y`\"", 1, 1))

    assert out.splitlines()[-1] in ("$HOME {x} y", "All workers done")
    assert "$HOME {x} y" in out.splitlines()
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --qpu=a\n"


def test_all_nodes_of_a_block_share_one_lease(tmp_path):
    launcher = LeaseLauncher(qpu="a", inner=SrunLauncher())
    block = launcher("echo --drain_period=90", 1, 2)

    out = run(tmp_path, block, SLURM_JOB_NAME="n", QPU_JOB_USED="30", SLURM_JOB_NUM_NODES="2")

    assert "--drain_period=60" in out
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --job-time --qpu=a\n"


def test_each_block_has_a_file_that_its_supervisor_watches(tmp_path):
    folder = tmp_path / "a user's run"
    launcher = LeaseLauncher(qpu="a")

    run(tmp_path, launcher("true", 1, 1, str(folder)))
    launcher("true", 1, 1, str(folder))

    files = [*folder.glob("block-*.alive")]
    assert len(files) == 2
    assert (tmp_path / "argv-qpu").read_text() in [
        f"lease exec --qpu=a --alive={file}\n" for file in files
    ]
    launcher.give_up()
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [(None, "", "leave"), (None, "cancel", "cancel"), ("cancel", "leave", "cancel")],
)
def test_tasks_of_a_lost_block_are_left_unless_the_user_says_otherwise(
    tmp_path, given, variable, expected
):
    launcher = LeaseLauncher(qpu="a", inner=SimpleLauncher(), on_stop=given)

    assert run(tmp_path, launcher("echo $QPU_ON_STOP", 1, 1), QPU_ON_STOP=variable) == (
        f"{expected}\n"
    )
