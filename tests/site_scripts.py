"""A sandbox whose Prolog and Epilog hold the jobs' QPUs, and users who may use nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from other_users import User
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox

__all__ = ["QPU_OPTIONS", "ScriptedSite"]

QPU_OPTIONS = ("--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")
_DRAINED = ("drain", "down", "fail")


class ScriptedSite:
    """The sandbox, as its administrator and its users see it.

    Args:
        box: The sandbox; up.
        work: A folder that every user may use.
        python: A Python with this package that every user may run.
    """

    def __init__(self, box: Sandbox, work: Path, python: tuple[str, ...]) -> None:
        self.box = box
        self.work = work
        self.python = " ".join(python)
        self.state = box.directory / "site" / "state"
        self.control = Control(box.directory / "emulator")

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user at a login node: without credentials, or a home to find any."""
        environ = os.environ | self.box.environment()
        for name in ("QPU_CONFIG", "QPU_STATE", "XDG_CONFIG_HOME"):
            environ.pop(name, None)
        return environ | {"HOME": str(self.work), "SLURM_EXPORT_ENV": "NONE"}

    def run(self, *argv: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands."""
        return subprocess.run(
            argv, env=self.environ, cwd=self.work, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def slurm(self, *argv: str) -> str:
        """Run one of Slurm's commands, which must succeed, and return its output."""
        done = self.run(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reap(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `qpu reap` as root, who can read the site's qrmi_config.json."""
        config = self.box.directory / "emulator" / "qrmi_config.json"
        environ = self.environ | {"QPU_CONFIG": str(config)}
        return subprocess.run(
            [sys.executable, "-m", "qrmi_workflows", "reap", *options],
            env=environ, cwd=self.work, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def submit(self, script: str, *options: str, user: User | None = None) -> int:
        """Submit a job, as a user, and return its id; its output is in the folder of the work."""
        path = self.work / f"job-{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        who = () if user is None else (f"--uid={user.name}",)
        asked = ("--parsable", f"--output={self.work}/%j.out", "--export=NONE", *who, *options)
        return int(self.slurm("sbatch", *asked, str(path)).split(";")[0])

    def output(self, job: int) -> str:
        """Return a job's output so far."""
        path = self.work / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def state_of(self, job: int) -> str:
        """Return a job's state, with its exit code."""
        form = "--Format=State:|,exit_code:|"
        return self.slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", form).strip()

    def await_state(self, job: int, *states: str, seconds: float = 60) -> None:
        """Wait until a job is in one of these states."""
        wait_until(
            lambda: self.state_of(job).partition("|")[0] in states,
            f"job {job} to be {' or '.join(states)}",
            seconds,
        )

    def await_output(self, job: int, text: str) -> None:
        """Wait until a job has written this."""
        wait_until(lambda: text in self.output(job), f"{text!r} in the output of job {job}")

    def await_epilog(self, job: int) -> None:
        """Wait until nothing of a job is left in the site's folder."""
        wait_until(lambda: not self.folder(job).exists(), f"the Epilog of job {job}")

    def folder(self, job: int) -> Path:
        """Return the folder of a job's leases."""
        return self.state / "jobs" / str(job)

    def sessions(self) -> dict[str, int]:
        """Return how many sessions the emulator has opened, and how many are open and closed."""
        sessions: dict[str, int] = self.control.counters()["sessions"]
        return sessions

    def records(self, job: int) -> list[dict[str, object]]:
        """Return the lease records of a job."""
        lines = [
            line for path in self.state.glob("leases/*.jsonl") for line in path.open().readlines()
        ]
        records = [json.loads(line) for line in lines]
        return [record for record in records if record["owner"]["job"] == str(job)]

    def drained_nodes(self) -> list[str]:
        """Return the nodes that no job could use."""
        rows = self.slurm("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return [row for row in rows if row.split()[1].startswith(_DRAINED)]
