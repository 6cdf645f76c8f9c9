"""A sandbox's processes: started, told apart from strangers, and ended, with all that they left.

A process is known by its id and its time of creation: ids are used again. What a daemon leaves
behind when it is killed (slurmstepd, a worker) is known by a variable in its environment, and a
job's processes by theirs or by their parents.
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

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import reaper
from qrmi_workflows.sandbox.layout import Layout

__all__ = [
    "ProcessRecord",
    "adopters",
    "daemon_environment",
    "end",
    "families",
    "jobs_among",
    "leftovers",
    "running",
    "start",
    "wait_until",
]

_MARK = "QPU_SANDBOX_DAEMON"
_FOREIGN = (
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
_CLOCK_TOLERANCE = 2.0  # the kernel counts from boot, and the time of boot is adjusted
_POLL = 0.05
_TAIL = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One daemon: its process id, and when that process was created (seconds since the epoch)."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """Return the process, or `None` when it has ended or its id belongs to another one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < _CLOCK_TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process() is not None


def daemon_environment(layout: Layout, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of the daemons: nothing of another Slurm's, and our mark."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"SLURM_CONF": str(layout.slurm_conf), _MARK: str(layout.directory)}


def start(argv: Sequence[str | Path], log: Path, environ: Mapping[str, str]) -> ProcessRecord:
    """Start a daemon in a session of its own, its output added to its log.

    Its parent is a small process that adopts every orphan of its descendants, so that they can be
    found for as long as they live.
    """
    command = [str(word) for word in argv]
    receiver, sender = os.pipe()
    with log.open("ab") as output, os.fdopen(receiver) as report:
        try:
            parent = subprocess.Popen(
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
        _PARENTS.append(parent)
        try:
            pid = int(report.readline())
            return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time())
        except (ValueError, psutil.Error) as error:
            raise _failure(Path(command[0]).name, "ended at once", log) from error


_PARENTS: list[subprocess.Popen[bytes]] = []
"""They outlive this process; until it ends, Python wants the handles of its children kept."""


def wait_until(
    ready: Callable[[], bool], name: str, record: ProcessRecord, log: Path, *, seconds: float
) -> None:
    """Wait until `ready()` is true.

    Args:
        ready: Asked again and again.
        name: The daemon that it speaks of.
        record: That daemon's process.
        log: Its log.
        seconds: How long to wait at most.

    Raises:
        SandboxError: The daemon ended, or the time is over; with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if not record.alive:
            raise _failure(name, "ended", log)
        if time.monotonic() > deadline:
            raise _failure(name, f"was not ready within {seconds:g} s", log)
        time.sleep(_POLL)


def end(processes: Iterable[psutil.Process], *, grace: float) -> None:
    """Send SIGTERM, wait, and send SIGKILL to those that are still there."""
    left = [process for process in processes if _signal(process, signal.SIGTERM)]
    left = _wait_for_end(left, grace)
    _wait_for_end([process for process in left if _signal(process, signal.SIGKILL)], 5.0)


def running(records: Iterable[ProcessRecord]) -> list[psutil.Process]:
    """Return those that run."""
    return [process for record in records if (process := record.process())]


def families(records: Iterable[ProcessRecord]) -> set[int]:
    """Return the process ids of those that run, and of all their descendants."""
    processes = running(records)
    children = [child for process in processes for child in _descendants(process)]
    return {process.pid for process in (*processes, *children)}


def leftovers(layout: Layout) -> list[psutil.Process]:
    """Find what belongs to the sandbox: marked processes, its jobs, and all their descendants.

    The parents that adopt orphans are not among them: each ends with its last child.
    """
    return [process for process in _members(layout) if not _adopts(process)]


def adopters(layout: Layout) -> list[psutil.Process]:
    """Find the parents that adopt orphans."""
    for parent in _PARENTS:
        parent.poll()
    return [process for process in _members(layout) if _adopts(process)]


def jobs_among(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Leave out slurmstepd, which reports that its tasks have ended."""
    return [process for process in processes if _name(process) != "slurmstepd"]


def _members(layout: Layout) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if _belongs(process, layout):
            found |= {item.pid: item for item in (process, *_descendants(process))}
    return [process for process in found.values() if process.pid != os.getpid()]


def _belongs(process: psutil.Process, layout: Layout) -> bool:
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        environ = process.environ()
    except (psutil.Error, OSError):
        return False
    if environ.get(_MARK) == str(layout.directory):
        return True
    # slurmd's children carry its node's name; the shell of salloc, which is the user's, does not.
    return "SLURMD_NODENAME" in environ and environ.get("SLURM_CONF") == str(layout.slurm_conf)


def _adopts(process: psutil.Process) -> bool:
    try:
        return reaper.__file__ in process.cmdline()
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def _wait_for_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _runs(process)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(_POLL)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _failure(name: str, what: str, log: Path) -> SandboxError:
    try:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    except OSError:
        tail = []
    said = "\n".join(f"  {line}" for line in tail) or "  (nothing)"
    return SandboxError(f"{name} {what}. The end of {log}:\n{said}\nCorrect that and try again.")
