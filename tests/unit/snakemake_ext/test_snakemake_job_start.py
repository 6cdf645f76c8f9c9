"""What a job does before its command: clean up and create, as Snakemake's `Job.prepare` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_slurm_qpu import job_start
from snakemake_executor_plugin_slurm_qpu.job_files import JobFiles
from snakemake_executor_plugin_slurm_qpu.job_start import JobStartError, prepare_job


def described(folder: Path, **values):
    job = {
        "rule": "quantum",
        "folder": str(folder),
        "inputs": [],
        "outputs": [],
        "directories": [],
        "logs": [],
        "latency_wait": 0,
        "tmpdir": None,
        "uses_system_tmpdir": False,
        "variables": {},
    }
    return job | values


def test_outputs_and_logs_of_an_earlier_start_are_removed_and_their_folders_created(tmp_path):
    for name in ("a.txt", "old/log", "d/x/file", "full/file", "kept.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()

    prepare_job(
        described(
            tmp_path,
            outputs=["a.txt", "d", "full", "empty", "link", "new/out/a.txt", os.devnull],
            directories=["d"],
            logs=["old/log", "logs/new"],
        )
    )

    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    # As under Snakemake, a folder that is not declared as `directory()` stays unless it is empty.
    assert left == {"full", "full/file", "kept.txt", "old", "new", "new/out", "logs"}
    assert Path(os.devnull).exists()


def test_a_write_protected_output_is_refused_and_nothing_removed(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch(0o444)
    writable = os.access  # root may write everywhere
    monkeypatch.setattr(
        job_start.os, "access", lambda p, m: writable(p, m) and Path(p).name != "b.txt"
    )

    with pytest.raises(JobStartError, match=r"rule 'quantum': output .*b\.txt is write-protected"):
        prepare_job(described(tmp_path, outputs=["a.txt", "b.txt"]))

    assert (tmp_path / "a.txt").exists()


def test_inputs_that_the_file_system_shows_late_are_waited_for(tmp_path):
    with pytest.raises(JobStartError, match=r"still missing after 0\.1 s: .*in\.txt.*latency-wait"):
        prepare_job(described(tmp_path, inputs=["in.txt"], latency_wait=0.1))

    later = subprocess.Popen(["sh", "-c", "sleep 0.2; touch in.txt"], cwd=tmp_path)
    prepare_job(described(tmp_path, inputs=["in.txt"], latency_wait=60))
    assert later.wait(60) == 0


@pytest.mark.parametrize(
    ("given", "tmpdir"),
    [
        ({"tmpdir": "/HERE/mine"}, "/HERE/mine"),
        ({"tmpdir": "mine"}, "mine"),
        ({"uses_system_tmpdir": True}, "/HERE/system"),
        ({}, None),
    ],
)
def test_the_tmpdir_is_created_and_set_under_all_its_names(tmp_path, given, tmpdir):
    here = {k: v.replace("/HERE", str(tmp_path)) if k == "tmpdir" else v for k, v in given.items()}
    (tmp_path / "system").mkdir()

    variables = prepared(tmp_path, here | {"variables": {"OMP_NUM_THREADS": "3"}})

    expected = (
        {} if tmpdir is None else dict.fromkeys(NAMES, tmpdir.replace("/HERE", f"{tmp_path}"))
    )
    assert {name: variables.get(name) for name in expected} == expected
    assert variables["OMP_NUM_THREADS"] == "3"
    if "tmpdir" in given:
        assert (tmp_path / "mine").is_dir()


NAMES = ("TMPDIR", "TMP", "TEMPDIR", "TEMP")


def prepared(folder: Path, values):
    """Run the program as a job does, and return the variables of its command."""
    files = JobFiles(folder, "1-1")
    head = files.start_argv([sys.executable], described(folder, **values))
    inherited = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [*head, "env", "-0"],
        env=inherited | {"TMPDIR": str(folder / "system")},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


@pytest.mark.parametrize("content", [None, "", json.dumps({"rule": "quantum"})])
def test_a_job_whose_description_is_lost_says_so_and_runs_nothing(tmp_path, content):
    file = tmp_path / "1-1.json"
    if content is not None:
        file.write_text(content)

    done = subprocess.run(
        [sys.executable, "-I", "-S", job_start.__file__, str(file), "touch", str(tmp_path / "ran")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "The job cannot start: " in done.stderr
    assert not (tmp_path / "ran").exists()
