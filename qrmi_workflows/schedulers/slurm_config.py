"""Slurm: parsers of its configuration, as `scontrol show config` prints it, and of durations."""

from __future__ import annotations

import re

__all__ = [
    "cluster_of",
    "has_accounting",
    "has_multiple_slurmd",
    "kill_wait_of",
    "min_job_age_of",
    "parse_duration",
    "seconds_of",
]


def cluster_of(scontrol_output: str) -> str | None:
    """Parse the cluster's name from `scontrol show config`."""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match[1] if match else None


def kill_wait_of(scontrol_output: str) -> float | None:
    """Parse the seconds from SIGTERM to SIGKILL from `scontrol show config` (`KillWait`)."""
    match = re.search(r"^KillWait\s*=\s*(\d+) sec", scontrol_output, re.MULTILINE)
    return float(match[1]) if match else None


def min_job_age_of(scontrol_output: str) -> float | None:
    """Parse from `scontrol show config` for how many seconds Slurm remembers an ended job.

    `None` if it is not known, or if Slurm never forgets (`MinJobAge=0`).
    """
    match = re.search(r"^MinJobAge\s*=\s*(\d+) sec", scontrol_output, re.MULTILINE)
    return float(match[1]) or None if match else None


def has_accounting(scontrol_output: str) -> bool:
    """Parse from `scontrol show config` whether `sacct` works at this site."""
    match = re.search(r"^AccountingStorageType\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match is not None and match[1].rpartition("/")[2] not in {"none", "(null)"}


def has_multiple_slurmd(scontrol_output: str) -> bool:
    """Parse from `scontrol show config` whether several slurmd can run on one machine.

    Slurm's `configure` has `--enable-multiple-slurmd` for this; SchedMD's packages are built
    without, Debian's with it.
    """
    return re.search(r"^MULTIPLE_SLURMD\s*=\s*Yes", scontrol_output, re.MULTILINE) is not None


def seconds_of(setting: str) -> int | None:
    """Parse a time of `scontrol show config` (`30 sec`); `None` if it is none."""
    match = re.match(r"(\d+) sec", setting)
    return int(match[1]) if match else None


def parse_duration(text: str) -> float | None:
    """Parse `[DAYS-][HOURS:]MINUTES:SECONDS[.FRACTION]`; `None` for `UNLIMITED`, `INVALID`, ….

    squeue and sacct write durations so.
    """
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
