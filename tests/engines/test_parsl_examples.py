"""Parsl's examples, and the code of the page for its users, run as printed on a real Slurm."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from emulated_site import emulated_site
from pages import blocks, example_command
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.gres import gres_of_job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ISING, RABI, CHAIN = "sweeps/ising.py", "sweeps/rabi.py", "h2/chain.py"
STAGE = "h2/stage.py"
PAGE = "bell/page.py"  # in the folder of the payload that it runs
SECONDS = 600  # the programs wait for one QPU in turn: 100 s if the machine is busy

EMULATOR = """
[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
strict = true
lanes = 3
preparation_seconds = 0.4

[qpus.FRESNEL]
type = "pasqal-cloud"
lanes = 2
preparation_seconds = 0.1
"""

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(2 * SECONDS),
]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox whose two QPUs compute their results, and prepare several tasks at once."""
    with emulated_site(tmp_path_factory.mktemp("site"), EMULATOR) as sandbox:
        yield sandbox


@dataclass(frozen=True)
class Run:
    """The output of the programs that ran in one folder."""

    folder: Path
    printed: dict[str, str]
    sessions: dict[str, int]
    jobs: str

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def leases(self, qpu: str) -> list[dict[str, Any]]:
        """Return the records of a QPU's leases, in the order in which they were acquired."""
        files = (self.folder / "state" / "leases").glob("*.jsonl")
        records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        chosen = [record for record in records if record["qpu"] == qpu]
        return sorted(chosen, key=lambda record: str(record["acquired"]))

    def tasks(self, qpu: str) -> list[TaskRecord]:
        """Return the journal's records of a QPU's tasks."""
        journal = Journal(self.folder / "state" / "journal")
        records = [*journal.records(), *journal.records(archived=True)]
        return [record for record in records if record.qpu == qpu]

    def most_at_once(self, qpu: str) -> int:
        """Return how many tasks were with a QPU at once, according to the journal."""
        records = self.tasks(qpu)
        results = [record.result for record in records if record.result]
        spans = [(result.submitted, result.completed) for result in results]
        return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def execute(script: str, folder: Path, environment: dict[str, str]) -> str:
    tools = f"{Path(sys.executable).parent}:{environment.get('PATH', os.environ['PATH'])}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment, "PATH": tools},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_programs(box: Sandbox, folder: Path, scripts: Mapping[str, str]) -> Run:
    """Run programs at the same time, each in its own folder."""
    copytree(EXAMPLES, folder, dirs_exist_ok=True, ignore=lambda *_: {"__pycache__"})
    environment = {**box.environment(), "QPU_STATE": str(folder / "state")}
    control = Control(box.directory / "emulator")
    jobs: dict[str, str] = {}

    def note_jobs() -> None:  # Slurm forgets a job five minutes after its end
        shown = execute("scontrol show job --oneliner", folder, environment)
        jobs.update((line.split()[0], line) for line in shown.splitlines() if "JobId=" in line)

    before = control.counters()["sessions"]
    with futures.ThreadPoolExecutor() as pool:
        runs = {
            program: pool.submit(execute, script, (folder / program).parent, environment)
            for program, script in scripts.items()
        }
        while futures.wait(runs.values(), timeout=60).not_done:
            note_jobs()
    printed = {program: run.result() for program, run in runs.items()}
    open_leases = folder / "state" / "leases" / "open"
    wait_until(lambda: not list(open_leases.glob("*.json")), "the leases to be released", SECONDS)
    after = control.counters()["sessions"]
    opened = {key: after[key] - before[key] for key in ("opened", "closed")}
    note_jobs()
    return Run(folder, printed, {**opened, "open": after["open"]}, "\n".join(jobs.values()))


def page() -> str:
    """Return all Python blocks of docs/parsl.md as one program."""
    return "\n".join(blocks(ROOT / "docs" / "parsl.md", "python"))


@pytest.fixture(scope="module")
def run(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the examples and the page at once; some wait in Slurm's queue for the same QPU."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bell").mkdir()
    (folder / PAGE).write_text(page())
    scripts = {program: example_command(program) for program in (ISING, RABI, CHAIN)}
    return run_programs(box, folder, {**scripts, PAGE: f"python {Path(PAGE).name}"})


def kicked_magnetisation(angle: float, spins: int = 10, kicks: int = 4) -> float:
    """Return ⟨ΣZ⟩/n after kicks exp(-iθX/2) on each spin, each followed by exp(iπZZ/4) on pairs."""
    z = 1 - 2 * np.array(list(product((0, 1), repeat=spins)))
    couplings = np.exp(1j * np.pi / 4 * (z[:, 1:] * z[:, :-1]).sum(axis=1))
    cosine, sine = np.cos(angle / 2), -1j * np.sin(angle / 2)
    state = np.zeros(2**spins, dtype=complex)
    state[0] = 1
    for _ in range(kicks):
        for spin in range(spins):
            split = state.reshape(2**spin, 2, -1)
            state = (cosine * split + sine * split[:, ::-1]).reshape(-1)
        state = couplings * state
    return float(np.abs(state) ** 2 @ z.mean(axis=1))


def test_a_sweep_keeps_all_lanes_of_the_qpu_busy(run: Run) -> None:
    rows = run.read("sweeps/ising.json")
    exact = [kicked_magnetisation(angle) for angle in np.linspace(0, np.pi / 2, 12)]
    assert exact[0] - exact[-1] > 0.9
    assert [row["exact"] for row in rows] == pytest.approx(exact, abs=1e-9)
    assert [row["magnetisation"] for row in rows] == pytest.approx(exact, abs=5 * 0.01)
    assert len({row["task"] for row in rows}) == 12
    # A task's end is journaled late, when its lane may already have the next task.
    assert run.most_at_once("ibm_fez") >= 3


def test_blockaded_atoms_oscillate_faster_by_the_square_root_of_their_number(run: Run) -> None:
    rows = run.read("sweeps/rabi.json")
    assert [row["atoms"] for row in rows] == [1, 2, 3]
    for row in rows:
        angles = np.sqrt(row["atoms"]) * np.pi * np.array(row["durations"]) / 1000
        assert row["excited"] == pytest.approx(np.sin(angles / 2) ** 2, abs=0.1)
        assert row["speed_up"] == pytest.approx(np.sqrt(row["atoms"]), rel=0.03)
    assert run.most_at_once("FRESNEL") >= 2


def check_chain(run: Run) -> None:
    energies = {row["bond_length"]: row for row in run.read("h2/curve/energies.json")}
    assert energies[0.735]["exact"] == pytest.approx(-1.1373060, abs=1e-6)  # full CI in STO-3G
    assert len(energies) == 8
    assert all(abs(row["energy"] - row["exact"]) < 1.6e-3 for row in energies.values())
    assert (run.folder / "h2/curve/curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_chain_acquires_the_qpu_only_when_its_payload_is_ready(run: Run) -> None:
    check_chain(run)
    (lease,) = [lease for lease in run.leases("ibm_fez") if lease["tasks"] == 1]
    ready = (run.folder / "h2/curve/payload.json").stat().st_mtime
    assert datetime.fromisoformat(lease["acquired"]).timestamp() > ready


def test_the_page_prints_the_counts_of_a_bell_circuit(run: Run) -> None:
    first, second, shots = map(ast.literal_eval, run.printed[PAGE].splitlines())
    assert set(first) == set(second) == {"00", "11"}
    assert sum(first.values()) == sum(second.values()) == shots == 1000


def test_each_block_held_one_lease_and_classical_apps_ran_without_a_qpu(run: Run) -> None:
    assert sorted(lease["tasks"] for lease in run.leases("ibm_fez")) == [1, 3, 12]
    assert [lease["tasks"] for lease in run.leases("FRESNEL")] == [24]
    assert run.sessions == {"opened": 3, "closed": 3, "open": 0}
    names = re.findall(r"JobName=([\w.]+)-", run.jobs)
    held = [gres_of_job(line)["gres"] for line in run.jobs.splitlines()]
    assert set(zip(names, held, strict=True)) == {
        ("parsl.classical.block", ""),
        ("parsl.qpu.block", "qpu:FRESNEL:1"),
        ("parsl.qpu.block", "qpu:ibm_fez:1"),
    }


def test_a_loop_of_two_executors_runs_in_one_stage(box: Sandbox, tmp_path: Path) -> None:
    run = run_programs(box, tmp_path, {STAGE: example_command(STAGE)})
    answer = run.read("h2/stage.json")
    assert answer["exact"] == pytest.approx(-1.1373060, abs=1e-6)  # full CI in STO-3G
    assert answer["energy"] == pytest.approx(answer["exact"], abs=1.6e-3)
    (lease,) = run.leases("ibm_fez")
    # The keeper's own tasks warm the session up.
    of_apps = {task.task_id for task in run.tasks("ibm_fez") if "warm-up" not in task.step}
    assert len(of_apps) == 4
    assert of_apps < set(lease["task_ids"])
    assert run.sessions == {"opened": 1, "closed": 1, "open": 0}


def test_a_chain_runs_without_slurm(box: Sandbox, tmp_path: Path) -> None:
    run = run_programs(box, tmp_path, {CHAIN: f"{example_command(CHAIN)} --local"})
    check_chain(run)
    assert [lease["tasks"] for lease in run.leases("ibm_fez")] == [1]
    assert run.sessions == {"opened": 1, "closed": 1, "open": 0}
