"""Kill and cancel the jobs of stages at random moments, finish their steps, count what was lost."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from break_it import (
    RUNS,
    SEED,
    Tally,
    new_step,
    require_no_losses,
    wait_for_lost_sessions,
    write_config,
)
from emulated_site import emulated_site
from job_times import start_again
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.slurm import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

AT_ONCE = 4
BATCHES = max(1, RUNS // 10)
QPUS = 16  # so many that a lost session has ended before its QPU is used again
CONFIG = "".join(
    f"""
[qpus.ibm_{number}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.3
"""
    for number in range(QPUS)
)
QPU = (sys.executable, "-m", "qrmi_workflows")
PROGRAM = Path(__file__).with_name("many_tasks.py")
JOBS = ("a", "b")
TASKS = 2  # of each job

HITS = (
    "kill the keeper",
    "kill the keeper's job",
    "cancel the keeper",
    "cancel the guard",
    "cancel keeper and guard",
    "kill a job",
    "cancel a job",
    "cancel all",
    "kill the opener",
    "requeue the keeper",
)


class Run:
    """One stage, which several jobs share, and what is done to it.

    Args:
        box: The sandbox.
        config: The site's `qrmi_config.json`.
        folder: The run's folder.
        number: The number of the run, which seeds its random numbers.
    """

    def __init__(self, box: Sandbox, config: Path, folder: Path, number: int) -> None:
        folder.mkdir()
        self.dice = random.Random(SEED + number)
        self.hit = HITS[number % len(HITS)]
        self.name = f"stage{number}"
        environ = os.environ | box.environment() | {"QPU_STAGE_WAIT": "5"}
        self.step = new_step(
            folder,
            qpu=f"ibm_{number % QPUS}",
            seed=SEED + number,
            config=config,
            control=lambda: Control(box.directory / "emulator"),
            environ=environ,
            qpu_command=QPU,
        )
        self.step.ignore_warm_ups(box.directory / "emulator")
        self.step.results = [
            self.step.out / job / f"{task}.json" for job in JOBS for task in range(TASKS)
        ]
        for job in JOBS:
            (self.step.out / job).mkdir()
        self.jobs: list[str] = []
        self.was_ready = False

    # The user's commands

    def qpu(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*QPU, *argv],
            env=self.step.environ,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def open(self) -> None:
        done = self.qpu("stage", "open", self.name, "--qpu", self.step.qpu)
        assert done.returncode == 0, done.stderr

    def stage(self) -> Stage | None:
        folder = StageFolder(self.step.state / "stages" / self.name)
        with suppress(FileNotFoundError):
            return Stage.load(folder)
        return None

    def submit(self) -> None:
        """Submit the stage's jobs, each in one of two ways."""
        options = self.qpu("stage", "options", self.name)
        if options.returncode != 0:  # the stage has ended already
            return
        for job in JOBS:
            command = [sys.executable, str(PROGRAM), str(self.step.out / job), str(TASKS)]
            if self.dice.random() < 0.5:
                command = [*QPU, "lease", "exec", "--stage", self.name, "--grace=1", "--", *command]
            script = self.step.folder / f"{job}.sh"
            lines = ["#!/bin/bash", f"export QPU_STAGE={self.name}", f"exec {shlex.join(command)}"]
            script.write_text("\n".join(lines) + "\n")
            output = f"--output={self.step.folder}/{job}.out"
            argv = ["sbatch", "--parsable", "--open-mode=append", output, "--time=10"]
            self.jobs.append(self.slurm(*argv, *options.stdout.split(), str(script)))

    def slurm(self, *argv: str) -> str:
        return require_success(run_command(argv, environ=self.step.environ)).stdout.strip()

    # What is done to it

    def start(self) -> None:
        """Open the stage, and perhaps kill the command that opens it; submit the jobs."""
        if self.hit == "kill the opener":
            argv = [*QPU, "stage", "open", self.name, "--qpu", self.step.qpu]
            opener = subprocess.Popen(argv, env=self.step.environ, stdout=subprocess.DEVNULL)
            time.sleep(self.dice.uniform(0.05, 0.6))
            opener.kill()
            opener.wait()
        self.open()
        self.submit()

    def harm(self) -> None:
        """Harm the stage before it is ready, or later."""
        if self.dice.random() < 0.6:
            with suppress(AssertionError):
                wait_until(self.is_ready, "the stage", seconds=20)
            time.sleep(self.dice.uniform(0, 2))
        else:
            time.sleep(self.dice.uniform(0, 1))
        self.was_ready = self.is_ready()
        stage = self.stage()
        keeper, guard = str(stage.keeper_job), str(stage.guard_job)
        if self.hit == "kill the keeper" and stage.keeper is not None:
            with suppress(ProcessLookupError):
                os.kill(stage.keeper.pid, 9)
        elif self.hit == "kill the keeper's job":
            self.cancel("--batch", "--signal=KILL", keeper)
        elif self.hit == "cancel the keeper":
            self.cancel(keeper)
        elif self.hit == "requeue the keeper":
            self.requeue(keeper)
        elif self.hit == "cancel the guard":
            self.cancel(guard)
        elif self.hit == "cancel keeper and guard":
            self.cancel(*self.dice.sample([keeper, guard], 2))
        elif self.hit == "kill a job" and self.jobs:
            self.kill(self.dice.choice(self.jobs))
        elif self.hit == "cancel a job" and self.jobs:
            self.cancel(self.dice.choice(self.jobs))
        elif self.hit == "cancel all":
            self.cancel(keeper, guard, *self.jobs)
        # A release cancels the tasks in flight, one of each job.
        self.step.stops += len(JOBS) if self.hit.startswith("cancel") else 0

    def is_ready(self) -> bool:
        stage = self.stage()
        return stage is not None and stage.generation > 0

    def cancel(self, *argv: str) -> None:
        run_command(["scancel", *argv], environ=self.step.environ)  # fails if a job has ended

    def requeue(self, job: str) -> None:
        """Requeue a job if it runs; Slurm would start it only after two minutes."""
        if run_command(["scontrol", "requeue", job], environ=self.step.environ).returncode == 0:
            argv = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
            with suppress(AssertionError):
                wait_until(lambda: self.slurm(*argv) == "PENDING", "the requeue", seconds=30)
                start_again(job, self.step.environ)

    def kill(self, job: str) -> None:
        """Kill all processes of a job, as the kernel does when memory runs out."""
        for process in self.step.processes():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_JOB_ID") == job:
                    process.kill()

    # How it ends

    def unfinished(self) -> dict[str, str]:
        """Return the state of each job of the run, the keeper's and the guard's too, by id."""
        listed = Slurm().parse_status(self.slurm(*Slurm().status_argv()))
        words = {f"qpu_{role}={self.name}" for role in ("stage", "keeper", "guard")}
        return {
            job_id: f"{status.name} {status.word} {status.reason}"
            for job_id, status in listed.items()
            if not status.state.is_final and status.comment.partition(":")[0] in words
        }

    def wait_for_jobs(self) -> dict[str, str]:
        """Wait until the run's jobs have ended; return those that are forgotten."""

        def are_over() -> bool:
            return not self.unfinished().keys() & set(self.jobs)

        with suppress(AssertionError):
            wait_until(are_over, "the stage's jobs", seconds=60)
        return {id_: word for id_, word in self.unfinished().items() if id_ in self.jobs}

    def close(self) -> dict[str, str]:
        """Close the stage, and wait for its own jobs; return those that are left."""
        self.qpu("stage", "list")
        self.qpu("stage", "close", self.name, "--now")
        with suppress(AssertionError):
            wait_until(lambda: not self.unfinished(), "the stage's own jobs", seconds=60)
        return self.unfinished()

    def finish(self) -> int:
        """Rerun what has no result yet; return how often a task was ambiguous.

        The workflow is run again, or its steps are finished under a lease of their own.
        """
        if self.dice.random() < 0.5 and not all(path.exists() for path in self.step.results):
            self.jobs = []
            self.open()
            self.submit()
            assert self.wait_for_jobs() == {}
            self.step.stops += len(JOBS)  # closing may cancel a task
            assert self.close() == {}
        each = [[sys.executable, str(PROGRAM), str(self.step.out / j), str(TASKS)] for j in JOBS]
        script = " && ".join(f'{shlex.join(argv)} "$@"' for argv in each)
        command = ["sh", "-c", script, "sh"]
        self.step.argv = [*QPU, "lease", "exec", "--qpu", self.step.qpu, "--", *command]
        if all(path.exists() for path in self.step.results):
            return 0
        return self.step.run_until_done()


def break_one(run: Run) -> tuple[dict[str, str], int]:
    """Break a stage and finish its steps.

    Returns:
        The jobs that were forgotten, and how often a task was ambiguous.
    """
    run.start()
    run.harm()
    forgotten = run.wait_for_jobs()
    forgotten |= run.close()
    run.step.wait_for_processes()
    if not run.was_ready:
        run.step.count_unrecorded_session()
    return forgotten, run.finish()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, Path]]:
    folder = tmp_path_factory.mktemp("break-stages")
    with emulated_site(folder, CONFIG) as box:
        yield box, write_config(box.directory / "emulator" / "qrmi_config.json", folder / "qpus")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_stages_at_random_moments(
    site: tuple[Sandbox, Path], tally: Tally, tmp_path: Path, batch: int
):
    numbers = range(batch * AT_ONCE, (batch + 1) * AT_ONCE)
    runs = [Run(*site, tmp_path / str(number), number) for number in numbers]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(break_one, runs))

    for run, (forgotten, ambiguous) in zip(runs, ended, strict=True):
        story = f"{run.step.folder.name}: {run.hit}, {'' if run.was_ready else 'not '}ready"
        tally.ways[f"{run.hit} of a stage"] += 1
        tally.losses["waiting jobs forgotten"] += len(forgotten)
        assert forgotten == {}, story
        require_no_losses(run.step, tally, ambiguous=ambiguous, story=story)


def test_lost_sessions_of_stages_end_at_their_time_to_live(site: tuple[Sandbox, Path]):
    wait_for_lost_sessions(Control(site[0].directory / "emulator"))
