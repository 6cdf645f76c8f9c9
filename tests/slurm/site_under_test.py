"""A sandbox that tests use through its commands, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox

__all__ = ["QPU", "Site", "run"]

QPU = (sys.executable, "-m", "qrmi_workflows", "sandbox")


class Site:
    """A sandbox and a folder for the user's files."""

    def __init__(self, box: Sandbox, work: Path) -> None:
        self.box = box
        self.work = work
        work.mkdir()

    def qpu(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `qpu sandbox VERB`."""
        return run(*QPU, verb, "--dir", str(self.box.directory), *options)

    def slurm(self, *argv: str) -> str:
        """Run one of Slurm's commands in the sandbox and return its output."""
        done = run(*argv, environ=os.environ | self.box.environment(), cwd=self.work)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *options: str) -> int:
        """Submit a job and return its id."""
        path = self.work / f"job-{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        return int(self.slurm("sbatch", "--parsable", *options, str(path)).split(";")[0])

    def states(self) -> dict[int, str]:
        """Return the state of every job that Slurm remembers."""
        rows = self.slurm("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines()
        return {int(row.split()[0]): row.split()[1] for row in rows}

    def wait_for(self, job: int, state: str = "COMPLETED") -> None:
        """Wait until a job is in a state."""
        wait_until(lambda: self.states().get(job) == state, f"job {job} to be {state}")

    def show(self, job: int) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.slurm("scontrol", "show", "job", str(job)).split()
        return dict(word.partition("=")[::2] for word in words)

    def pids(self) -> dict[str, int]:
        """Return the process ids of the daemons."""
        return {daemon.name: daemon.pid for daemon in self.box.status().daemons}

    def ports(self) -> list[int]:
        """Return the TCP ports of the daemons."""
        return [daemon.port for daemon in self.box.status().daemons if daemon.port]

    def processes(self) -> list[str]:
        """Return all processes whose arguments, environment or folder name the sandbox."""
        return [shown for shown in map(_shown, psutil.process_iter()) if self._is_in(shown)]

    def _is_in(self, shown: str) -> bool:
        return str(self.box.directory) in shown


def _shown(process: psutil.Process) -> str:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return json.dumps([process.pid, process.cmdline(), process.environ(), process.cwd()])
    except psutil.Error:
        return ""


def run(
    *argv: str, environ: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        argv, env=environ, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
