"""Slurm's Epilog in a sandbox: kill the processes that a job has left on its node.

A real site confines each job to a cgroup, which needs root. Without one, Slurm follows a job's
processes from parent to child, and loses those whose parent has ended. They become children of the
node's reaper (`sandbox.reaper`), and are recognised by the job's id in their environment. Those
that have cleared it are killed as soon as they cannot belong to another job on the node.

This module runs as a script at the end of each job. It imports nothing else of the package and
little else, to start quickly. It must exit with 0, or Slurm drains the node.
"""

import os
import signal
import sys
from contextlib import suppress

__all__ = ["main"]

_ROUNDS = 10  # a process may start others before it is killed


def main(reaper: str, conf: str, node: str, job: str) -> None:
    """Kill what a job has left behind.

    Args:
        reaper: The path of the reapers' script.
        conf: The path of the sandbox's slurm.conf.
        node: The node's name.
        job: The job's id.
    """
    for _ in range(_ROUNDS):
        left = _left_behind({reaper, conf, node}, job)
        if not left:
            return
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _left_behind(names: set[str], job: str) -> set[int]:
    """Return what a job has left on the node whose reapers have these arguments."""
    parents = _parents()
    this_epilog = {os.getpid(), *_ancestors(os.getpid(), parents)}
    reapers = {pid for pid in parents if names <= set(_words(pid, "cmdline"))}
    on_node = [pid for pid in parents if reapers & set(_ancestors(pid, parents))]
    candidates = {pid for pid in on_node if pid not in this_epilog | reapers}
    programs = {pid: _words(pid, "cmdline")[0] for pid in candidates}
    steps = {pid for pid in candidates if "slurmstepd" in programs[pid]}
    # A child of slurmd keeps its name until it executes slurmstepd.
    others = candidates - steps - {pid for pid in candidates if _is_slurmd(programs[pid])}
    # A site's Prolog leaves a process that waits for what the vendor grants late.
    others -= {pid for pid in others if "qrmi_workflows.site.prolog" in _words(pid, "cmdline")}
    # What runs in another job's step is that job's, even a shell of `salloc` with this job's id.
    lost = {pid for pid in others if not steps & set(_ancestors(pid, parents))}
    jobs = {pid: _job_of(pid) for pid in lost}
    found = {pid for pid in lost if jobs[pid] == job}
    has_other_jobs = any(f"slurmstepd: [{job}." not in programs[pid] for pid in steps)
    if not has_other_jobs and not set(jobs.values()) - {job, ""}:
        found |= {pid for pid in lost if parents[pid] in reapers}
    return found | {pid for pid in lost if found & set(_ancestors(pid, parents))}


def _parents() -> dict[int, int]:
    """Return the parent of each of this user's processes; zombies are left out."""
    found = {}
    # Not pathlib, whose import takes longer than all of this.
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):  # noqa: PTH208
        with suppress(OSError):  # it has ended
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():  # noqa: PTH116
                state, parent = _read(pid, "stat").rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[pid] = int(parent)
    return found


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid := parents.get(pid, 0):
        found.append(pid)
    return found


def _is_slurmd(program: str) -> bool:
    return program.rpartition("/")[2].startswith("slurmd")


def _job_of(pid: int) -> str:
    """Return the job of a process, or an empty string; an epilog belongs to no job."""
    environ = dict(word.partition("=")[::2] for word in _words(pid, "environ"))
    is_epilog = environ.get("SLURM_SCRIPT_CONTEXT") == "epilog_slurmd"
    return "" if is_epilog else environ.get("SLURM_JOB_ID", "")


def _words(pid: int, name: str) -> list[str]:
    try:
        return _read(pid, name).split("\0")
    except OSError:
        return [""]


def _read(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return file.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_ID"])
