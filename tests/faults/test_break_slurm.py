"""End Slurm jobs at random moments, rerun their steps, and count what was lost."""

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
    new_step,
    require_no_losses,
    wait_for_lost_sessions,
    write_config,
)
from emulated_site import emulated_site
from job_times import expire, start_again
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.command import require_success, run_command

pytestmark = pytest.mark.slurm

AT_ONCE = 4
CANCELLED = max(1, RUNS // 20)
"""The number of batches of `AT_ONCE` jobs that are cancelled."""
REQUEUED = max(1, RUNS // 40)
"""The number of batches of `AT_ONCE` jobs that are requeued or preempted."""
TIMED_OUT = max(1, RUNS // 100)
"""The number of batches whose jobs reach their time limit; Slurm checks it every 30 seconds."""
JOBS_PER_LIMIT = 12
QPUS = 32  # so many that a lost session has ended before its QPU is used again
CONFIG = "".join(
    f"""
[qpus.ibm_{number}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {0.3 if number < QPUS else 0.02}
"""
    for number in range(QPUS + JOBS_PER_LIMIT)
)
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
SIGKILL = ("--batch", "--signal=KILL")
"""Kills the batch script. Without `--batch`, Slurm takes SIGKILL for a cancellation."""
CANCELLATIONS = (
    (),
    ("--signal=KILL",),
    ("--full", "--signal=KILL"),
    ("--full", "--signal=TERM"),
)
PROGRAM = Path(__file__).with_name("many_tasks.py")
QPU = (sys.executable, "-m", "qrmi_workflows")


class Site:
    """A sandbox whose QPUs each serve one step at a time."""

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

    def submit(self, step: Step, script: str, *options: str) -> str:
        """Submit a step's job and wait until it is running, or has ended already."""
        (step.folder / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
        grants = (f"--gres=qpu:{step.qpu}:1", f"--licenses=qpu_{step.qpu}:1", "--time=10")
        argv = ["sbatch", "--parsable", *grants, *options, f"--output={step.folder}/job.out"]
        job = self.slurm(*argv, str(step.folder / "job.sh"), environ=step.environ)
        self.wait_for(job, "RUNNING", "COMPLETING", "COMPLETED", "FAILED")
        return job

    def restart(self, jobs: list[str], dice: random.Random) -> None:
        """Requeue jobs, or have another job preempt them, and start them again immediately."""
        if dice.random() < 0.5:
            for job in jobs:
                run_command(["scontrol", "requeue", job], environ=self.environ)  # or it has ended
        else:
            argv = ["sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null"]
            self.wait_for(self.slurm(*argv, "--nodes=2", "--wrap=true"), "COMPLETED")
        for job in jobs:
            if self.wait_for(job, "PENDING", "COMPLETED", "FAILED") == "PENDING":
                start_again(job, self.environ)

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
        site = Site(box, folder)
        with Path(site.environ["SLURM_CONF"]).open("a") as slurm_conf:
            slurm_conf.write(PREEMPTION)
        site.slurm("scontrol", "reconfigure")
        yield site


def plain(step: Step) -> str:
    """Run the command as most users do, as a child of the batch shell."""
    return shlex.join(step.argv)


def replaced(step: Step) -> str:
    """Run the command in place of the batch shell."""
    return f"exec {shlex.join(step.argv)}"


def supervised(step: Step) -> str:
    """Run the command under `qpu lease exec`."""
    return f"exec {shlex.join(under_lease(step, step.argv))}"


def stubborn(step: Step) -> str:
    """Run the command under `qpu lease exec`; it and its children ignore SIGTERM."""
    ignoring = ["sh", "-c", f"trap '' TERM; exec {shlex.join(step.argv)}"]
    return f"exec {shlex.join(under_lease(step, ignoring))}"


def under_lease(step: Step, argv: list[str]) -> list[str]:
    return [*QPU, "lease", "exec", "--qpu", step.qpu, "--grace", "1", "--", *argv]


SCRIPTS: tuple[Callable[[Step], str], ...] = (plain, replaced, supervised, stubborn)


def cancel(site: Site, step: Step, dice: random.Random, script: str) -> tuple[str, int]:
    """Run a step's job, cancel it and finish the step.

    Returns:
        The state of the journal before, and how often a task was ambiguous.
    """
    job = site.submit(step, script)
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, 2.0))
    else:
        wait_for_state(step, dice.choice(STATES))
    state = step.journal_state()
    how = dice.choice([SIGKILL, *CANCELLATIONS])
    step.stops += how != SIGKILL
    run_command(["scancel", *how, job], environ=site.environ)  # fails if the job has ended
    return state, finish(site, step, job)


def wait_for_state(step: Step, state: str) -> None:
    """Wait for a state of the journal, but not for long: a brief one may already have passed."""
    with suppress(AssertionError):
        wait_until(lambda: step.journal_state() in (state, "completed"), state, seconds=5)


def finish(site: Site, step: Step, job: str) -> int:
    """Wait for a job's end and rerun its step; return how often a task was ambiguous."""
    site.wait_for(job, "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT")
    step.wait_for_processes()
    step.count_unrecorded_session()
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
        require_no_losses(
            step, tally, ambiguous=ambiguous, story=f"{step.folder.name}: {script.__name__}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(REQUEUED))
def test_requeue_and_preemption_at_random_moments(
    site: Site, tally: Tally, tmp_path: Path, batch: int
):
    first = (CANCELLED + batch) * AT_ONCE
    dice = random.Random(SEED + first)
    numbers = range(first, first + AT_ONCE)
    steps = [site.step(tmp_path / str(number), number, qpu=number % QPUS) for number in numbers]
    script = dice.choice([plain, replaced, supervised])
    options = ("--requeue", "--partition=low")
    jobs = [site.submit(step, script(step), *options) for step in steps]
    time.sleep(dice.uniform(0, 1.5))
    for step in steps:
        tally.states[step.journal_state()] += 1
        step.stops += 1
    site.restart(jobs, dice)

    for step, job in zip(steps, jobs, strict=True):
        ambiguous = finish(site, step, job)
        tally.ways[f"restart of a {script.__name__} job"] += 1
        require_no_losses(step, tally, ambiguous=ambiguous, story=f"{step.folder.name}: restart")


def start_many(site: Site, step: Step) -> str:
    """Start a job whose command runs one task after another, ignoring SIGTERM."""
    step.argv = [sys.executable, str(PROGRAM), str(step.out), "10000"]
    job = site.submit(step, stubborn(step))
    expire(job, site.environ)
    return job


def find_started_tasks(step: Step) -> str:
    """Have the rerun finish what the job had started; return the state of its last task."""
    started = len(list(step.state.glob("journal/open/*/*/*.json")))
    step.results = [step.out / f"{number}.json" for number in range(started)]
    step.argv = under_lease(step, [*step.argv[:-1], str(started)])
    step.stops += 1
    if all(result.exists() for result in step.results[-1:]):  # also if it had started none
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
    states = [find_started_tasks(step) for step in steps]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ambiguous = list(pool.map(finish, [site] * len(steps), steps, jobs))

    for step, state, number in zip(steps, states, ambiguous, strict=True):
        tally.ways["time limit of a stubborn job"] += 1
        tally.states[state] += 1
        require_no_losses(step, tally, ambiguous=number, story=f"{step.folder.name}: time limit")


def test_lost_sessions_of_jobs_end_at_their_time_to_live(site: Site):
    wait_for_lost_sessions(site.control())
