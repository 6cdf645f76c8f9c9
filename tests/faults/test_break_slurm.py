"""End Slurm jobs at random moments; run their steps again; count what was lost."""

from __future__ import annotations

import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from break_it import (
    NO_INTENT,
    RUNS,
    SEED,
    STATES,
    Step,
    Tally,
    await_no_session,
    judge,
    new_step,
    write_config,
)
from emulated_site import emulated_site
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.command import require_success, run_command

pytestmark = pytest.mark.slurm

AT_ONCE = 4
CANCELLED = max(1, RUNS // 20)
"""How many batches of `AT_ONCE` jobs are cancelled."""
TIMED_OUT = max(1, RUNS // 100)
"""How many batches of jobs reach their time limit; Slurm looks every 30 seconds for those."""
JOBS_PER_LIMIT = 12
QPUS = 32  # so many that a session whose grant was lost has ended when its QPU's turn comes again
CONFIG = "".join(
    f"""
[qpus.ibm_{number}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {0.3 if number < QPUS else 0.02}
"""
    for number in range(QPUS + JOBS_PER_LIMIT)
)
PROGRAM = Path(__file__).with_name("many_tasks.py")
QPU = (sys.executable, "-m", "qrmi_workflows")


class Site:
    """A sandbox and its QPUs, each for one step at a time."""

    def __init__(self, box: Sandbox, folder: Path) -> None:
        self.box = box
        self.environ = os.environ | box.environment()
        self.config = write_config(box.directory / "emulator" / "qrmi_config.json", folder / "qpus")

    def control(self) -> Control:
        return Control(self.box.directory / "emulator")

    def step(self, folder: Path, number: int, *, qpu: int) -> Step:
        folder.mkdir()
        return new_step(
            folder,
            qpu=f"ibm_{qpu}",
            seed=SEED + number,
            config=self.config,
            control=self.control,
            environ=self.environ,
            qpu_command=QPU,
        )

    def slurm(self, *argv: str, environ: Mapping[str, str] | None = None) -> str:
        done = run_command(argv, environ=environ or self.environ)
        return require_success(done).stdout.strip()

    def submit(self, step: Step, script: str) -> str:
        """Submit a step's job, and wait until it runs."""
        (step.folder / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
        grants = (f"--gres=qpu:{step.qpu}:1", f"--licenses=qpu_{step.qpu}:1", "--time=10")
        argv = ["sbatch", "--parsable", *grants, f"--output={step.folder}/job.out"]
        job = self.slurm(*argv, str(step.folder / "job.sh"), environ=step.environ)
        self.wait_for(job, "RUNNING")
        return job

    def end_now(self, job: str) -> None:
        """Let a job's time be up; Slurm refuses that in the second in which it has started."""
        argv = ["scontrol", "update", f"JobId={job}", "EndTime=now"]
        wait_until(
            lambda: run_command(argv, environ=self.environ).returncode == 0,
            f"Slurm to accept the end of job {job}",
        )

    def wait_for(self, job: str, *states: str) -> str:
        argv = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"]

        def state() -> str | None:
            found = self.slurm(*argv)
            return found if found in states else None

        return wait_until(state, f"job {job} to be {' or '.join(states)}", seconds=90)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("break-slurm")
    with emulated_site(folder, CONFIG) as box:
        yield Site(box, folder)


def plain(step: Step) -> str:
    """As most users write it: Slurm ends the shell at once, and with it what it waits for."""
    return shlex.join(step.argv)


def replaced(step: Step) -> str:
    return f"exec {shlex.join(step.argv)}"


def supervised(step: Step) -> str:
    return f"exec {shlex.join(under_lease(step, step.argv))}"


def deaf(step: Step) -> str:
    """Its command, and all that this starts, ignore SIGTERM."""
    ignoring = ["sh", "-c", f"trap '' TERM; exec {shlex.join(step.argv)}"]
    return f"exec {shlex.join(under_lease(step, ignoring))}"


def under_lease(step: Step, argv: list[str]) -> list[str]:
    return [*QPU, "lease", "exec", "--qpu", step.qpu, "--grace", "1", "--", *argv]


SCRIPTS: tuple[Callable[[Step], str], ...] = (plain, replaced, supervised, deaf)


def cancel(site: Site, step: Step, dice: random.Random, script: str) -> tuple[str, int]:
    """Run a step's job and cancel it; return how far its journal had come, and the ambiguous."""
    job = site.submit(step, script)
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, 2.0))
    else:
        await_state(step, dice.choice(STATES))
    state = step.journal_state()
    how = dice.choice([(), (), ("--signal=KILL",), ("--full", "--signal=TERM")])
    run_command(["scancel", *how, job], environ=site.environ)  # fails where the job has ended
    return state, finish(site, step, job)


def await_state(step: Step, wanted: str) -> None:
    """Wait for a state of the journal, but not for long: a brief one may already have passed."""
    with suppress(AssertionError):
        wait_until(lambda: step.journal_state() in (wanted, "completed"), wanted, seconds=5)


def finish(site: Site, step: Step, job: str) -> int:
    """Wait for a job's end, and run its step again; return how often a task was ambiguous."""
    site.wait_for(job, "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT")
    step.wait_for_processes()
    step.note_lost_grant()
    if all(result.exists() for result in step.results):
        return 0
    return step.run_until_done()


@pytest.mark.parametrize("batch", range(CANCELLED))
def test_scancel_at_random_moments(site: Site, tally: Tally, tmp_path: Path, batch: int):
    numbers = range(batch * AT_ONCE, (batch + 1) * AT_ONCE)
    dice = [random.Random(SEED + number) for number in numbers]
    scripts = [SCRIPTS[number % len(SCRIPTS)] for number in numbers]
    steps = [site.step(tmp_path / str(number), number, qpu=number % QPUS) for number in numbers]

    def break_one(index: int) -> tuple[str, int]:
        step = steps[index]
        return cancel(site, step, dice[index], scripts[index](step))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(break_one, range(AT_ONCE)))

    for step, script, (state, ambiguous) in zip(steps, scripts, ended, strict=True):
        tally.ways[f"scancel of a {script.__name__} job"] += 1
        tally.states[state] += 1
        judge(step, tally, ambiguous=ambiguous, story=f"{step.folder.name}: {script.__name__}")


def start_many(site: Site, step: Step) -> str:
    """Start a job whose command runs one task after another and ignores SIGTERM."""
    step.argv = [sys.executable, str(PROGRAM), str(step.out), "10000"]
    job = site.submit(step, deaf(step))
    site.end_now(job)
    return job


def take_stock(step: Step) -> str:
    """Find what the job had begun; return how far the last task had come."""
    begun = len(list(step.state.glob("journal/open/*/*/*.json")))
    step.results = [step.out / f"{number}.json" for number in range(begun)]
    step.argv = under_lease(step, [*step.argv[:-1], str(begun)])
    if all(result.exists() for result in step.results[-1:]):  # none where its time came first
        return NO_INTENT
    return step.journal_state()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("batch", range(TIMED_OUT))
def test_the_time_limit_of_commands_that_ignore_sigterm(
    site: Site, tally: Tally, tmp_path: Path, batch: int
):
    numbers = range(batch * JOBS_PER_LIMIT, (batch + 1) * JOBS_PER_LIMIT)
    steps = [site.step(tmp_path / str(n), n, qpu=QPUS + n % JOBS_PER_LIMIT) for n in numbers]
    jobs = [start_many(site, step) for step in steps]
    assert {site.wait_for(job, "TIMEOUT", "COMPLETED", "FAILED") for job in jobs} == {"TIMEOUT"}
    states = [take_stock(step) for step in steps]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ambiguous = list(pool.map(finish, [site] * len(steps), steps, jobs))

    for step, state, number in zip(steps, states, ambiguous, strict=True):
        tally.ways["time limit of a deaf job"] += 1
        tally.states[state] += 1
        judge(step, tally, ambiguous=number, story=f"{step.folder.name}: time limit")


def test_sessions_whose_grant_was_lost_in_a_job_end_by_themselves(site: Site):
    await_no_session(site.control())
