"""Stop a sandbox: its jobs first, while its daemons still serve them, then the daemons."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.errors import SandboxError, SchedulerError
from qrmi_workflows.sandbox.layout import Layout, runtime_directories
from qrmi_workflows.sandbox.processes import (
    find_daemons,
    find_processes,
    find_reapers,
    name_of,
    terminate,
    tree_pids,
    without_slurmstepd,
)
from qrmi_workflows.schedulers.command import run_command

__all__ = ["stop_sandbox", "stop_unrecorded"]

_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05


def stop_sandbox(layout: Layout, runtime: Path | None, *, grace: float) -> None:
    """Cancel all jobs, stop every process of a sandbox, and delete its runtime directories.

    The processes are found by their environment, so that this works without the state file and
    even without the directory.

    Args:
        layout: The sandbox's paths.
        runtime: Its runtime directory, if known.
        grace: Seconds for jobs to end on their own.

    Raises:
        SandboxError: A process outlived SIGKILL.
    """
    daemons = find_daemons(layout)
    slurm = [daemon for daemon in daemons if name_of(daemon).startswith("slurm")]
    services = [daemon for daemon in daemons if daemon not in slurm]
    controllers = [daemon for daemon in slurm if name_of(daemon) == "slurmctld"]
    if controllers:
        _cancel_jobs(layout)
        _wait_for_jobs(layout, grace)
    else:
        _delete_saved_jobs(layout)
    # Terminate jobs that have outlived the grace period while the emulator still runs, so that
    # they can release their leases.
    daemon_pids = tree_pids([*services, *controllers]) | {daemon.pid for daemon in slurm}
    job_processes = without_slurmstepd(find_processes(layout))
    terminate((job for job in job_processes if job.pid not in daemon_pids), grace=2.0)
    if controllers:
        _wait_for_jobs(layout, _STOP_SECONDS)
    terminate(slurm, grace=_STOP_SECONDS)
    terminate(services, grace=_STOP_SECONDS)
    _kill_remaining(layout)
    for directory in {*runtime_directories(layout), *([runtime] if runtime else [])}:
        shutil.rmtree(directory, ignore_errors=True)
    layout.state_file.unlink(missing_ok=True)


def stop_unrecorded(layout: Layout, recorded: Iterable[int]) -> None:
    """Stop daemons that are not recorded: those of an `up` that was killed before it did so.

    Args:
        layout: The sandbox's paths.
        recorded: The process ids of the recorded daemons.
    """
    known = set(recorded)
    terminate((each for each in find_daemons(layout) if each.pid not in known), grace=1.0)


def _cancel_jobs(layout: Layout) -> None:
    with suppress(SchedulerError):  # slurmctld hangs; stop_sandbox() kills its jobs
        run_command([str(layout.wrappers / "scancel"), "--me"])


def _wait_for_jobs(layout: Layout, seconds: float) -> None:
    """Wait until the queue is empty, also of completing jobs: their nodes have yet to report."""
    squeue = [str(layout.wrappers / "squeue"), "--noheader", "--format=%i"]
    deadline = time.monotonic() + seconds
    with suppress(SchedulerError):
        while run_command(squeue).stdout.strip() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _delete_saved_jobs(layout: Layout) -> None:
    """Delete the saved jobs of a controller that has died, or its next start would run them."""
    for path in layout.controller_state.glob("job_state*"):
        path.unlink()


def _kill_remaining(layout: Layout) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while remaining := [*find_processes(layout), *find_reapers(layout)]:
        if time.monotonic() > deadline:
            pids = [process.pid for process in remaining]
            raise SandboxError(
                f"processes {pids} of the sandbox in {layout.directory} outlived SIGKILL. Use "
                "`ps` to find out what blocks them, then run `qpu sandbox down` again."
            )
        terminate(find_processes(layout), grace=0.0)
        time.sleep(_POLL_SECONDS)
