"""Runs Snakemake as users do: a Snakefile in a folder, the `snakemake` command, its output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from waiting import wait_until
from warm_ups import without_warm_ups

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox

SNAKEMAKE = ("-m", "snakemake")
OPTIONS = ("--executor", "slurm-qpu", "--jobs", "40")
LIMIT = 180.0
"""Seconds for one run. It allows for a loaded machine: only a run that hangs reaches it."""
BELL = """OPENQASM 3.0;
include "stdgates.inc";
qubit[2] q;
bit[2] meas;
h q[0];
cx q[0], q[1];
meas = measure q;
"""
PAYLOAD = {
    "program_id": "sampler",
    "parameters": {
        "version": 2,
        "support_qiskit": True,
        "options": {},
        "pubs": [
            ['OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;', [], 100]
        ],
    },
}
"""One qubit, flipped, 100 shots: every shot is 1."""


class Project:
    """A workflow in a folder of its own, which runs on a sandbox."""

    def __init__(self, folder: Path, sandbox: Sandbox, limit: float = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self.environ = os.environ | sandbox.environment()
        self.emulator = sandbox.directory / "emulator"
        self.control = Control(self.emulator)
        self.wrappers = sandbox.directory / "bin"

    @classmethod
    def on_idle_slurm(cls, folder: Path, sandbox: Sandbox) -> Project:
        """Return a project on a sandbox in which no job of an earlier test is still ending."""
        project = cls(folder, sandbox)
        wait_until(lambda: not project.jobs(), "the end of earlier jobs")
        return project

    def write(self, snakefile: str, **files: str) -> None:
        """Write the Snakefile, and other Python files by their stems (`script` is script.py)."""
        (self.folder / "Snakefile").write_text(dedent(snakefile))
        for stem, text in files.items():
            (self.folder / f"{stem}.py").write_text(dedent(text))

    def read(self, name: str) -> str:
        """Return the content of a file of the workflow."""
        return (self.folder / name).read_text()

    def start(
        self, *options: str, program: Sequence[str] = SNAKEMAKE, **environ: str
    ) -> subprocess.Popen[str]:
        """Start the workflow; `program` holds the arguments with which Python runs Snakemake."""
        return subprocess.Popen(
            [sys.executable, *program, *OPTIONS, *options],
            cwd=self.folder,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        *options: str,
        fails: bool = False,
        program: Sequence[str] = SNAKEMAKE,
        **environ: str,
    ) -> str:
        """Run the workflow to its end and return its output; a run that hangs fails."""
        return self.wait(self.start(*options, program=program, **environ), fails=fails)

    def wait(self, process: subprocess.Popen[str], *, fails: bool = False) -> str:
        """Wait for the end of a run and return its output."""
        try:
            output, _ = process.communicate(timeout=self.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"Snakemake hangs: {process.communicate()[0]}") from None
        except BaseException:  # pytest's timeout: a Snakemake that stays would disturb later tests
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert (process.returncode != 0) == fails, output
        assert "Traceback" not in output
        return output

    def slurm(self, *argv: str) -> str:
        """Run one of Slurm's commands and return its output."""
        return subprocess.run(
            argv, env=self.environ, capture_output=True, text=True, check=True, timeout=LIMIT
        ).stdout

    def jobs(self) -> set[str]:
        """Return the ids of the jobs that are pending, running or ending."""
        return set(self.slurm("squeue", "--noheader", "--format=%A").split())

    @contextmanager
    def queries(self) -> Iterator[Callable[[], list[str]]]:
        """Record the commands that ask Slurm about jobs.

        Yields:
            A function that lists those so far, by the job that they run in (`head` for none).
        """
        log = self.folder / "queries"
        log.touch()
        scripts = [self.wrappers / name for name in ("squeue", "sacct", "scontrol")]
        texts = [script.read_text() for script in scripts]
        for script, text in zip(scripts, texts, strict=True):
            head, rest = text.split("\n", 1)
            note = f'case "$*" in *config) ;; *) echo "${{SLURM_JOB_ID:-head}}" >>{log} ;; esac'
            script.write_text(f"{head}\n{note}\n{rest}")
        try:
            yield lambda: log.read_text().split()
        finally:
            for script, text in zip(scripts, texts, strict=True):
                script.write_text(text)

    def sessions(self) -> tuple[int, int]:
        """Return how many sessions the emulator has opened, and how many are still open."""
        sessions = self.control.counters()["sessions"]
        return sessions["opened"], sessions["open"]

    def accepted_tasks(self) -> int:
        """Return how many tasks the emulator has accepted, without the warm-up tasks of keepers."""
        tasks = self.control.counters()["tasks"]
        return without_warm_ups(tasks, self.emulator)["accepted"]


@contextmanager
def acquired_by_the_site(sandbox: Sandbox, qpu: str, **others: str) -> Iterator[None]:
    """Set in every job the variables of QRMI's SPANK plugin, which acquires before the job."""
    prolog = sandbox.directory / "etc" / "task_prolog"
    text = prolog.read_text()
    variables = {
        "QRMI_JOB_QPU_RESOURCES": qpu,
        "QRMI_JOB_QPU_TYPES": "ibm-quantum-compute-service",
        f"{qpu}_QRMI_JOB_ACQUISITION_TOKEN": "of-the-site",
        **others,
    }
    exports = (f"echo export {name}={value}\n" for name, value in variables.items())
    prolog.write_text(text + "".join(exports))
    try:
        yield
    finally:
        prolog.write_text(text)


def submitted(output: str) -> list[str]:
    """Return the ids of the Slurm jobs with a QPU that a run has submitted."""
    return re.findall(r"SLURM jobid (\d+), for QPU", output)
