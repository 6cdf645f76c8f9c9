"""Kill the keeper and the members of a stage at random moments, and count what was lost.

`BREAK_RUNS` scales the number of runs, and `BREAK_SEED` is the seed of their random numbers (see
`break_it`). A loop starts a killed keeper again, as its job's script does, and a killed member's
step is rerun.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from break_it import RUNS, SEED
from servers import servers, to_toml
from stage_runs import Keeping, Vendor

from qrmi_workflows import find_stage
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases

TYPE = "ibm-quantum-compute-service"
SERVERS = {"-".join(server) or "default": server for server in servers(TYPE)}
SECONDS = 0.3  # of a task
TASKS = 4  # of each of the two members
ROUNDS = max(1, RUNS * 2 // (3 * len(SERVERS)))  # for each server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("break-stages")
    qpu = '[qpus.{}]\ntype = "{}"\nsimulator = "null"\nexecution_seconds = {}\nlanes = 2\n'
    (folder / "emulator.toml").write_text(
        "".join(
            qpu.format(name, TYPE, SECONDS) + f"server = {to_toml(server)}\n"
            for name, server in SERVERS.items()
        )
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture(scope="module")
def losses() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    print(f"\nstages, seed {SEED}: {dict(sorted(counts.items()))}")


def victims(keeping: Keeping, members: dict[str, subprocess.Popen[str]], way: str) -> list[str]:
    names = ["keeper", *members]
    return names if way == "all" else [random.choice(names)]


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("run", range(ROUNDS))
def test_a_stage_that_is_killed_at_random_moments_loses_nothing(
    running: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    losses: Counter[str],
    server: str,
    run: int,
):
    random.seed(SEED + run * len(SERVERS) + list(SERVERS).index(server))
    monkeypatch.setenv("QPU_CONFIG", str(running.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", os.devnull)
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    vendor = Vendor(running, server)
    with Keeping(vendor) as keeping:
        keeping.start_keeper(wait=False)
        members = {step: keeping.start_member(step, tasks=TASKS) for step in ("a", "b")}
        story = []
        for _ in range(random.randint(1, 3)):
            time.sleep(random.uniform(0.1, 1.5))
            way = random.choice(["one", "one", "all"])
            for name in victims(keeping, members, way):
                process = keeping.keeper if name == "keeper" else members[name]
                number = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                process.send_signal(number)
                story.append(f"{number.name} to {name}")
                process.wait(timeout=60)
                losses[f"{number.name} to a {'keeper' if name == 'keeper' else 'member'}"] += 1
                revive(keeping, members, name)
        ambiguous = settle(keeping, members)
        losses["ambiguous"] += ambiguous
        keeping.close()
        keeping.wait_for_keeper()
        reap()

        counted = {
            "tasks paid twice": max(0, vendor.count("tasks", "completed") - 2 * TASKS - ambiguous),
            "leases left open": len(list(open_leases())),
            "results lost": 2 * TASKS - sum(len(completed(step)) for step in members),
        }
        assert not any(counted.values()), f"{story}: {counted}"


def completed(step: str) -> set[str]:
    records = Journal().step(step).records()
    return {str(each.task_id) for each in records if each.state == "completed"}


def revive(keeping: Keeping, members: dict[str, subprocess.Popen[str]], name: str) -> None:
    """Start a process again; a stage whose keeper was stopped is opened again."""
    if name != "keeper":
        members[name] = keeping.start_member(name, tasks=TASKS)
        return
    if find_stage(keeping.name).is_ended:
        keeping.open()
    keeping.start_keeper(wait=False)


def settle(keeping: Keeping, members: dict[str, subprocess.Popen[str]]) -> int:
    """Rerun the steps until they have their results: a stopped one, or one whose stage ended.

    Returns:
        How many tasks were submitted again because the vendor's answer had been lost.
    """
    ambiguous = 0
    for step in members:
        for _ in range(6):
            code, results = keeping.outcome(members[step])
            if (code, results) == (0, TASKS):
                break
            resubmit = "it is not known whether" in keeping.errors
            ambiguous += sum(each.state == "intent" for each in Journal().step(step).records())
            members[step] = keeping.start_member(step, tasks=TASKS, resubmit=resubmit)
        else:
            raise AssertionError(f"no results of {step} after six runs")
    return ambiguous
