"""What a block's supervisor is told to run; a real shell runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from parsl.launchers import SimpleLauncher, SingleNodeLauncher, SrunLauncher

from parsl_ext import LeaseLauncher
from parsl_ext.launcher import ALIVE_FILE

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
    """Run a block's lines with a supervisor that holds nothing; return what the pool prints."""
    for name, script in COMMANDS.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    argv = ["bash", "-c", block]
    return subprocess.run(
        argv, env=environ, cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("asked", "used", "left", "drains"),
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
def test_a_pool_drains_at_a_time_of_its_job(tmp_path, asked, used, left, drains):
    launcher = LeaseLauncher(qpu="a", inner=SimpleLauncher())
    block = launcher(f"echo --drain_period={asked} --cpu-affinity none", 1, 1, str(tmp_path))

    out = run(tmp_path, block, QPU_JOB_USED=used, QPU_JOB_LEFT=left)

    assert out == f"--drain_period={drains} --cpu-affinity none\n"
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --job-time --qpu=a\n"


@pytest.mark.parametrize("inner", [SingleNodeLauncher(debug=False), SimpleLauncher(), None])
def test_a_command_reaches_the_workers_as_it_is(tmp_path, inner):
    launcher = LeaseLauncher(qpu="a", inner=inner)

    out = run(tmp_path, launcher("echo '$HOME {x}' \"`echo y`\"", 1, 1, str(tmp_path)))

    assert out.splitlines()[-1] in ("$HOME {x} y", "All workers done")
    assert "$HOME {x} y" in out.splitlines()
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --qpu=a\n"


def test_one_lease_is_held_for_all_nodes_of_a_block(tmp_path):
    launcher = LeaseLauncher(qpu="a", inner=SrunLauncher())
    block = launcher("echo --drain_period=90", 1, 2, str(tmp_path))

    out = run(tmp_path, block, SLURM_JOB_NAME="n", QPU_JOB_USED="30", SLURM_JOB_NUM_NODES="2")

    assert "--drain_period=60" in out
    assert (tmp_path / "argv-qpu").read_text() == "lease exec --job-time --qpu=a\n"


def test_the_submit_sides_sign_of_life_is_watched_where_there_is_one(tmp_path):
    folder = tmp_path / "a user's run"
    folder.mkdir()
    (folder / ALIVE_FILE).touch()

    run(tmp_path, LeaseLauncher(qpu="a")("true", 1, 1, str(folder)))

    alive = f"--alive={folder / ALIVE_FILE}"
    assert (tmp_path / "argv-qpu").read_text() == f"lease exec --qpu=a {alive}\n"
