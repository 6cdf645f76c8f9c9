"""The batch scripts of the keeper's and the guard's jobs, run by bash."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from waiting import wait_until

from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.stages.scripts import render_guard_script, render_keeper_script


def script(tmp_path: Path, body: str) -> Path:
    """Render a keeper's script whose command is a shell script that notes each start."""
    command = ["bash", "-c", f"echo start >>{tmp_path}/starts; {body}"]
    text = render_keeper_script(
        command, scheduler=Slurm(), options=["--comment=a b"], exports={"QPU_STATE": "/a b"}
    )
    path = tmp_path / "keeper.sh"
    path.write_text(text)
    return path


def starts(tmp_path: Path) -> int:
    file = tmp_path / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_keeper_that_ends_is_not_started_again(tmp_path):
    for code in (0, 1, 2, 143):
        done = subprocess.run(["bash", script(tmp_path, f"exit {code}")], check=False)
        assert done.returncode == code
    assert starts(tmp_path) == 4


def test_a_keeper_that_is_killed_is_started_again(tmp_path):
    body = f"[ $(wc -l <{tmp_path}/starts) = 2 ] || kill -KILL $$"
    done = subprocess.run(
        ["bash", script(tmp_path, body)], check=False, capture_output=True, text=True
    )

    assert done.returncode == 0
    assert starts(tmp_path) == 2
    assert "the keeper was killed by signal 9 (attempt 1 of 6)" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_job_does_not_end_the_script_before_the_keeper(tmp_path, number):
    """Slurm signals both; the scheduler kills what is left when the script has ended."""
    go = tmp_path / "go"
    release = f"touch {tmp_path}/released; kill -KILL $$"
    body = f"until [ -e {go} ]; do sleep 0.02; done; {release}"
    # With `env`, because bash cannot trap a signal that was ignored when it started (nohup).
    defaults = ["env", "--default-signal=HUP,INT,TERM"]
    shell = subprocess.Popen([*defaults, "bash", script(tmp_path, body)])
    wait_until(lambda: starts(tmp_path) == 1, "the keeper")

    shell.send_signal(number)
    go.touch()

    assert shell.wait() == 137
    assert (tmp_path / "released").exists()
    assert starts(tmp_path) == 1


def test_directives_and_variables_are_quoted(tmp_path):
    text = script(tmp_path, "true").read_text()

    assert text.splitlines()[:3] == [
        "#!/bin/bash",
        "#SBATCH '--comment=a b'",
        "export QPU_STATE='/a b'",
    ]
    guard = render_guard_script(["a b"], scheduler=Slurm(), options=["--x"], exports={})
    assert guard == "#!/bin/bash\n#SBATCH --x\n\nexec 'a b'\n"
