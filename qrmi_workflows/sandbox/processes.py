"""Start, identify and terminate the processes of a sandbox.

A recorded daemon is identified by its process id and creation time, because ids are reused. Daemons
that nobody has recorded, and what a killed daemon leaves behind (slurmstepd, a worker), are
identified by a variable in their environment, and a job's processes by their environment or their
ancestors.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from qrmi_workflows.config.variables import QPU_SANDBOX_DAEMON
from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import reaper
from qrmi_workflows.sandbox.layout import Layout
from qrmi_workflows.state.files import read_tail

__all__ = [
    "ProcessRecord",
    "daemon_environment",
    "find_daemons",
    "find_processes",
    "find_reapers",
    "name_of",
    "start_daemon",
    "terminate",
    "tree_pids",
    "wait_until_ready",
    "without_slurmstepd",
]

_DROPPED_PREFIXES = (
    "SLURM",
    "SBATCH_",
    "SALLOC_",
    "SRUN_",
    "SINFO_",
    "SQUEUE_",
    "SCANCEL_",
    "QPU_",
    "QRMI_",
)
_CLOCK_TOLERANCE = 2.0  # creation times derive from the boot time, which NTP shifts
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0
_LOG_LINES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """A daemon's process id, and its creation time in seconds since the epoch."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """Return the process, or `None` if it has ended or its id now belongs to another one."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < _CLOCK_TOLERANCE
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process() is not None


def daemon_environment(layout: Layout, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the daemons' environment, with the marker and without another cluster's settings."""
    kept = {
        name: value for name, value in environ.items() if not name.startswith(_DROPPED_PREFIXES)
    }
    return kept | {"SLURM_CONF": str(layout.slurm_conf), QPU_SANDBOX_DAEMON: str(layout.directory)}


def start_daemon(
    argv: Sequence[str | Path], log: Path, environ: Mapping[str, str]
) -> ProcessRecord:
    """Start a daemon in a new session and append its output to its log.

    The daemon's parent is a small process, the reaper, which adopts orphaned descendants so that
    they remain traceable.

    Raises:
        SandboxError: The daemon exited immediately.
    """
    command = [str(word) for word in argv]
    receiver, sender = os.pipe()
    with log.open("ab") as output, os.fdopen(receiver) as report:
        try:
            reaper_process = subprocess.Popen(
                [sys.executable, "-I", "-S", reaper.__file__, str(sender), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=dict(environ),
                pass_fds=[sender],
                start_new_session=True,
            )
        finally:
            os.close(sender)
        _REAPERS.append(reaper_process)
        try:
            pid = int(report.readline())
            return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time())
        except (ValueError, psutil.Error) as error:
            raise _start_error(Path(command[0]).name, "exited immediately", log) from error


_REAPERS: list[subprocess.Popen[bytes]] = []
"""Handles of running reapers. Python warns if the handle of a running child is discarded."""


def wait_until_ready(
    is_ready: Callable[[], bool], name: str, record: ProcessRecord, log: Path, *, seconds: float
) -> None:
    """Wait until a daemon is ready.

    Args:
        is_ready: Called repeatedly until it returns true.
        name: The daemon's name.
        record: Its process.
        log: Its log.
        seconds: The time limit.

    Raises:
        SandboxError: The daemon exited or the time limit passed; shows the end of the log.
    """
    deadline = time.monotonic() + seconds
    while not is_ready():
        if not record.alive:
            raise _start_error(name, "exited", log)
        if time.monotonic() > deadline:
            raise _start_error(name, f"was not ready within {seconds:g} s", log)
        time.sleep(_POLL_SECONDS)


def terminate(processes: Iterable[psutil.Process], *, grace: float) -> None:
    """Send SIGTERM, wait for the grace period, and send SIGKILL to the remaining processes."""
    signalled = [process for process in processes if _send_signal(process, signal.SIGTERM)]
    remaining = _wait_for_exit(signalled, grace)
    killed = [process for process in remaining if _send_signal(process, signal.SIGKILL)]
    _wait_for_exit(killed, _KILL_SECONDS)


def tree_pids(processes: Sequence[psutil.Process]) -> set[int]:
    """Return the ids of processes and of all their descendants."""
    children = [child for process in processes for child in _descendants(process)]
    return {process.pid for process in (*processes, *children)}


def find_daemons(layout: Layout) -> list[psutil.Process]:
    """Find the sandbox's daemons, recorded or not, without their children and slurmstepd."""
    marked = {
        process.pid: process
        for process in psutil.process_iter()
        if _is_marked(process, layout) and not _is_reaper(process)
    }
    roots = (process for process in marked.values() if _parent_pid(process) not in marked)
    return without_slurmstepd(roots)


def find_processes(layout: Layout) -> list[psutil.Process]:
    """Find the sandbox's processes: marked ones, its jobs, and all their descendants.

    Reapers are left out: each exits after its last child.
    """
    return [process for process in _find_all(layout) if not _is_reaper(process)]


def find_reapers(layout: Layout) -> list[psutil.Process]:
    """Find the sandbox's reapers."""
    for reaper_process in _REAPERS:
        reaper_process.poll()  # collect those that have exited, or they would remain as zombies
    return [process for process in _find_all(layout) if _is_reaper(process)]


def without_slurmstepd(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Leave out slurmstepd, which has to report to slurmctld that its tasks have ended."""
    return [process for process in processes if name_of(process) != "slurmstepd"]


def name_of(process: psutil.Process) -> str:
    """Return the name of a process's program, or an empty string if it has ended."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _find_all(layout: Layout) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if _is_member(process, layout):
            found |= {item.pid: item for item in (process, *_descendants(process))}
    return [process for process in found.values() if process.pid != os.getpid()]


def _is_member(process: psutil.Process, layout: Layout) -> bool:
    environ = _environ(process)
    # Only slurmd's children have SLURMD_NODENAME. The user's own shell under salloc does not.
    is_of_job = "SLURMD_NODENAME" in environ and environ.get("SLURM_CONF") == str(layout.slurm_conf)
    return is_of_job or environ.get(QPU_SANDBOX_DAEMON) == str(layout.directory)


def _is_marked(process: psutil.Process, layout: Layout) -> bool:
    return _environ(process).get(QPU_SANDBOX_DAEMON) == str(layout.directory)


def _environ(process: psutil.Process) -> dict[str, str]:
    """Return a process's environment; empty if it is another user's, or has ended."""
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return {}
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _is_reaper(process: psutil.Process) -> bool:
    try:
        return reaper.__file__ in process.cmdline()
    except psutil.Error:
        return False


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.Error:
        return None


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _send_signal(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def _wait_for_exit(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes that are still running after a time limit."""
    deadline = time.monotonic() + seconds
    while (remaining := [process for process in processes if _is_running(process)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(_POLL_SECONDS)
    return remaining


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _start_error(name: str, what: str, log: Path) -> SandboxError:
    try:
        tail = read_tail(log).splitlines()[-_LOG_LINES:]
    except OSError:
        tail = []
    lines = "\n".join(f"  {line}" for line in tail) or "  (empty)"
    return SandboxError(f"{name} {what}. The end of {log}:\n{lines}\nFix this and try again.")
