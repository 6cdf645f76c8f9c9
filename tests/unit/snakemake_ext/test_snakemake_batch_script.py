"""The batch script of a Snakemake job with a QPU, as text and in a real shell."""

import os
import signal
import subprocess
import time

import pytest

from snakemake_executor_plugin_slurm_qpu.batch_script import (
    lease_argv,
    render_batch_script,
)

GOLDEN = """\
#!/bin/bash
marker='/home/it'"'"'s me/markers'/"$SLURM_JOB_ID"
rm -f "$marker"
trap : HUP INT TERM
env 'QPU_STEP=rule a' QPU_KILL_WAIT=5 /opt/python -m qrmi_workflows lease exec --qpu ibm_fez \
--submitted=1234.5 --granted -- bash -c 'echo "$HOME"'
status=$?
echo "$status" > "$marker.part" && mv "$marker.part" "$marker"
exit "$status"
"""


def test_the_script_runs_one_supervisor_and_leaves_a_marker(tmp_path):
    command = lease_argv(
        ["/opt/python"],
        ["ibm_fez"],
        "rule a",
        ["bash", "-c", 'echo "$HOME"'],
        submitted=1234.49,
        kill_wait=5.0,
        lanes=None,
    )

    assert render_batch_script(command, type(tmp_path)("/home/it's me/markers")) == GOLDEN


def test_a_job_uses_the_lanes_that_it_holds():
    command = lease_argv(
        ["python"], ["FRESNEL"], "rule a", ["true"], submitted=1.0, kill_wait=None, lanes=3
    )

    assert command[:4] == ["env", "QPU_STEP=rule a", "QPU_LANES=3", "python"]


def test_the_tasks_of_a_job_that_is_retried_are_left_for_its_next_attempt(tmp_path):
    command = lease_argv(
        ["python"],
        ["FRESNEL"],
        "rule a",
        ["true"],
        submitted=1.0,
        kill_wait=None,
        lanes=None,
        alive=tmp_path / "alive",
    )

    assert command[2:5] == ["QPU_ON_STOP=leave", f"QPU_ALIVE={tmp_path}/alive", "python"]


def start(script, tmp_path, **environ):
    return subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"SLURM_JOB_ID": "7"} | environ
    )


@pytest.mark.parametrize("status", [0, 3])
def test_the_marker_holds_the_exit_status_which_the_script_passes_on(tmp_path, status):
    script = render_batch_script(["bash", "-c", f"exit {status}"], tmp_path)

    assert start(script, tmp_path).wait(60) == status
    assert (tmp_path / "7").read_text() == f"{status}\n"


def test_a_requeued_job_starts_without_the_marker_of_its_first_run(tmp_path):
    (tmp_path / "7").touch()

    script = render_batch_script(["bash", "-c", "test ! -e 7"], tmp_path)

    assert start(script, tmp_path).wait(60) == 0


def test_the_shell_outlives_the_supervisor_that_a_signal_ends(tmp_path):
    """Slurm signals all processes of a job, and kills the rest once its batch script has ended."""
    supervisor = "trap 'sleep 0.2; touch released; exit 143' TERM; touch up; sleep 60 & wait"
    process = start(render_batch_script(["bash", "-c", supervisor], tmp_path), tmp_path)
    while not (tmp_path / "up").exists():
        time.sleep(0.01)

    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGTERM)

    assert process.wait(60) == 143
    assert (tmp_path / "released").exists()
    assert (tmp_path / "7").read_text() == "143\n"


def test_a_qpu_name_with_a_hyphen_reaches_the_command_through_every_shell(tmp_path):
    script = render_batch_script(["bash", "-c", "env | grep ^ibm-fez_"], tmp_path)

    assert start(script, tmp_path, **{"ibm-fez_QRMI_JOB_ACQUISITION_TOKEN": "t"}).wait(60) == 0


def test_a_job_joins_a_stage_and_coalesces_tasks_if_its_rule_says_so():
    argv = lease_argv(
        ["python"],
        ["ibm_fez"],
        "s",
        ["true"],
        submitted=1.0,
        kill_wait=None,
        lanes=None,
        stage="vqe",
        coalesce=True,
    )

    assert argv[:3] == ["env", "QPU_STEP=s", "QPU_COALESCE=1"]
    assert argv[argv.index("--stage") + 1] == "vqe"
