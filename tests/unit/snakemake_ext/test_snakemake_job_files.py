"""A job's files: its description and a command of any length, for the user's eyes only."""

import os
import subprocess

import pytest

from snakemake_executor_plugin_slurm_qpu.job_files import JobFiles

WORD = "\u4e2d"  # three bytes
LENGTHS = [1, 20_000, 60_000, 100_000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("folder", [None, "it's here"])
def test_a_command_may_have_any_length_in_bytes_and_any_quotes(tmp_path, length, folder):
    (tmp_path / "it's here").mkdir()
    command = f"pwd; x=it\\'s' {WORD * length}'; echo ${{#x}} \"$0\""
    where = None if folder is None else str(tmp_path / folder)

    argv = JobFiles(tmp_path, "7-1").shell_argv("/bin/bash", command, where)

    shown = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"}
    ).stdout.split("\n")
    assert shown[0] == str(tmp_path / (folder or ""))
    assert shown[1].split()[0] == str(length + len("it's "))
    assert max(len(os.fsencode(word)) for word in argv) < 128 * 1024


def test_the_files_are_the_users_own_and_go_with_the_job(tmp_path):
    files = JobFiles(tmp_path, "7-1")
    files.start_argv(["python"], {"rule": "caf\u00e9 \udcff"})
    files.shell_argv("/bin/bash", "#" * 100_000)

    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "jobs").iterdir()}
    assert modes == {"7-1.json": 0o600, "7-1.sh": 0o700}
    files.remove()
    files.remove()
    assert not list((tmp_path / "jobs").iterdir())
