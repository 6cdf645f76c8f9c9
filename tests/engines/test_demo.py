"""The demo, as users run it: with its own Slurm, without Slurm, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_until

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
SECONDS = 240  # allows for a loaded machine

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]


def run_demo(folder: Path, *options: str) -> dict[str, Any]:
    argv = [sys.executable, str(DEMO), "--json", *options]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def slurm_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("slurm")
    return folder, run_demo(folder)


def check_answers(report: dict[str, Any]) -> None:
    assert report["faults"] == []
    assert len(report["energies"]) >= 6
    for row in [*report["energies"], report["vqe"]]:
        assert abs(row["energy"] - row["exact"]) < 1.6e-3
    for file in report["files"]:
        assert Path(file.partition(": ")[2]).stat().st_size > 0


def check_leases(report: dict[str, Any]) -> None:
    """Check that the antennas, the curve and the whole variational loop held one lease each."""
    tasks = [iteration["task"] for iteration in report["vqe"]["iterations"]]
    held = sorted((lease["qpu"], lease["tasks"]) for lease in report["leases"])
    assert len(set(tasks)) == len(tasks) > 5
    assert held == [("FRESNEL", 1), ("ibm_fez", 1), ("ibm_fez", len(tasks))]
    assert report["open"] == 0
    fez = report["qpus"]["ibm_fez"]
    assert fez["sessions"] == {"opened": 2, "closed": 2, "open": 0}
    assert fez["tasks"]["completed"] == 1 + len(tasks)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that run in a folder, or name it."""
    return [
        " ".join(process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline", "cwd"])
        if str(folder) in " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
    ]


def wait_for_the_end_of(folder: Path) -> None:
    """Wait for what has released its lease and is still exiting; nothing may stay."""
    wait_until(lambda: processes_of(folder) == [], "the end of all processes", seconds=20)


def test_it_runs_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a proxy is set: it must not be used for the addresses of this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    report = run_demo(tmp_path, "--no-slurm")
    check_answers(report)
    check_leases(report)
    assert report["jobs"] == []
    wait_for_the_end_of(tmp_path)


@pytest.mark.slurm
def test_its_answers_are_right(slurm_run: tuple[Path, dict[str, Any]]) -> None:
    _, report = slurm_run
    check_answers(report)
    check_leases(report)


@pytest.mark.slurm
def test_slurm_ran_its_jobs_with_their_qpus(slurm_run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = slurm_run
    held = {job["name"]: (job["gres"], job["licences"]) for job in report["jobs"]}
    assert held == {
        "prep_h2_prepare_h2_transpile": ("", ""),
        "mis_sample": ("qpu:FRESNEL:1", "qpu_FRESNEL:1"),
        "h2_estimate": ("qpu:ibm_fez:1", "qpu_ibm_fez:1"),
        "parsl.qpu.block-0": ("qpu:ibm_fez:1", "qpu_ibm_fez:1"),
    }
    block = next(job["id"] for job in report["jobs"] if job["name"].startswith("parsl"))
    assert {iteration["job"] for iteration in report["vqe"]["iterations"]} == {block}
    owners = {lease["owner"]["job"] for lease in report["leases"]}
    assert owners == {job["id"] for job in report["jobs"] if job["gres"]}
    shown = (folder / "demo-run" / "slurm-jobs.txt").read_text()
    assert shown.count("gres:qpu:") + shown.count("gres/qpu:") == 3


@pytest.mark.slurm
def test_it_leaves_no_process(slurm_run: tuple[Path, dict[str, Any]]) -> None:
    wait_for_the_end_of(slurm_run[0])


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen([sys.executable, str(DEMO)], cwd=tmp_path)
    logs = tmp_path / "demo-run/.snakemake/slurm_logs"
    wait_until(logs.exists, "the log of a Slurm job", seconds=SECONDS)
    demo.send_signal(number)
    assert demo.wait(60) == 128 + number
    wait_for_the_end_of(tmp_path)


@pytest.mark.slurm
def test_a_run_first_ends_the_processes_that_a_killed_run_has_left(tmp_path: Path) -> None:
    demo = subprocess.Popen([sys.executable, str(DEMO)], cwd=tmp_path)
    log = tmp_path / "demo-run/snakemake.log"
    wait_until(log.exists, "the log of Snakemake", seconds=SECONDS)
    demo.kill()
    demo.wait()
    assert processes_of(tmp_path) != []
    first = [sys.executable, "-c", "import demo; demo.clear()"]
    subprocess.run(first, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(DEMO.parent)})
    # An orphaned Snakemake ends once its Slurm has gone.
    wait_until(lambda: processes_of(tmp_path) == [], "the end of the orphans")
