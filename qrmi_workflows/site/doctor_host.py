"""Checks of this host: KillWait, the state folder and its locks, versions, plugins."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.variables import QPU_KILL_WAIT, QPU_STATE, kill_wait_seconds
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.killwait import DEFAULT_SECONDS, KillWait
from qrmi_workflows.plugins import find_plugins
from qrmi_workflows.site.reading import SiteReading
from qrmi_workflows.state.locks import lock_file

__all__ = [
    "check_kill_wait",
    "check_plugins",
    "check_state_folder",
    "check_versions",
    "mount_of",
]

_LOCAL = frozenset(
    ["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"]
)
_HOST_ONLY_LOCKS = re.compile(r"(?:^|,)(nolock|localflock|local_lock=(?:all|flock))(?:,|$)")
_LOCK_SECONDS = 10.0


def check_kill_wait(reading: SiteReading) -> Iterator[Finding]:
    """Compare the scheduler's KillWait with what releasing a QPU takes."""
    seconds = None if reading.examination is None else reading.examination.kill_wait
    try:
        set_here = kill_wait_seconds()
    except ConfigError as error:
        problem, _, remedy = str(error).rpartition(". ")
        yield Finding.error("kill_wait", f"{problem}.", remedy)
        set_here = None
    if seconds is None:
        return
    release = KillWait.divide(seconds).release
    if seconds < DEFAULT_SECONDS:
        yield Finding.warning(
            "kill_wait",
            f"KillWait is {seconds:g} s: a job that is ended has {release:g} s to release its QPU; "
            "a vendor that is slower leaves a session open.",
            f"Set `KillWait={DEFAULT_SECONDS:g}` or more in slurm.conf.",
        )
    else:
        yield Finding.ok("kill_wait", f"{seconds:g} s, of which releasing a QPU has {release:g}")
    if set_here is not None and set_here > seconds:
        yield Finding.error(
            "kill_wait",
            f"${QPU_KILL_WAIT}={set_here:g}, but the scheduler sends SIGKILL after {seconds:g} s.",
            f"Unset ${QPU_KILL_WAIT}, or set it to {seconds:g}.",
        )
    for policy in () if reading.site is None else reading.site.qpus.values():
        if policy.kill_wait is not None and policy.kill_wait > seconds and reading.site:
            yield Finding.error(
                "kill_wait",
                f"QPU {policy.name!r}: kill_wait = {policy.kill_wait:g} "
                f"({reading.site.place(policy.name, 'kill_wait')}), but the scheduler sends "
                f"SIGKILL after {seconds:g} s.",
                f"Set `KillWait={policy.kill_wait:g}` in slurm.conf, or correct kill_wait.",
            )


def check_state_folder(reading: SiteReading) -> Iterator[Finding]:
    """Check the folder of the journal and the leases: can it be written, locked, shared?"""
    try:
        folder = state_folder()
    except ConfigError as error:
        yield Finding.error("state", str(error), f"Set ${QPU_STATE}.")
        return
    elsewhere = f"Set ${QPU_STATE} to a folder of yours on a shared file system."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = _lock_problem(folder)
    except OSError as error:
        yield Finding.error("state", f"{folder}: {error.strerror or error}.", elsewhere)
        return
    mount = mount_of(folder)
    if problem is not None:
        yield Finding.error(
            "state",
            f"{folder} (file system {mount.type}): {problem}",
            f"{elsewhere} Lustre has locks if it is mounted with `flock`.",
        )
        return
    yield Finding.ok("state", f"{folder} can be written and locked (file system {mount.type})")
    yield from _check_sharing(reading, folder, mount)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding.error(
            "state",
            f"{folder} has mode {mode:04o}: others can replace your journal and your leases.",
            f"Run `chmod go-w {folder}`.",
        )


def _check_sharing(reading: SiteReading, folder: Path, mount: _Mount) -> Iterator[Finding]:
    hosts = frozenset() if reading.examination is None else reading.examination.hosts
    own = {"localhost", socket.gethostname(), socket.gethostname().partition(".")[0]}
    others = sorted(hosts - own)
    if others and mount.type in _LOCAL:
        yield Finding.error(
            "state",
            f"{folder} is on {mount.type} of this host; jobs run on {others[0]}, too, which has "
            "another folder of that name, or none.",
            f"Set ${QPU_STATE} to a folder on a file system that all hosts share.",
        )
    if match := _HOST_ONLY_LOCKS.search(mount.options):
        yield Finding.error(
            "state",
            f"{folder}: its file system is mounted with {match[1]!r}, so locks do not work between "
            "hosts.",
            "Mount it with `flock` (Lustre), or without that option (NFS).",
        )


def _lock_problem(folder: Path) -> str | None:
    """Return why a lock in a folder does not keep another process out; `None` if it does."""
    code = (
        "import fcntl, sys\n"
        "try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: sys.exit(7)\n"
    )
    with NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        try:
            held = lock_file(Path(file.name))
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                return f"it has no locks ({error.strerror})."
            raise
        with held:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code, file.name],
                timeout=_LOCK_SECONDS,
                check=False,
                capture_output=True,
            )
    return None if done.returncode == 7 else "a lock that one process holds is granted to another."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    """A mounted file system."""

    type: str
    options: str


def mount_of(path: Path, mounts: str | None = None) -> _Mount:
    """Return the file system that a path is on.

    Args:
        path: The path.
        mounts: The text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)); read if `None`.
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    place, best, found = os.path.realpath(path), "", _Mount(type="unknown", options="")
    for line in mounts.splitlines():
        fields, separator, rest = line.partition(" - ")
        if not separator:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split()[4])
        is_below = place == point or place.startswith(f"{point.rstrip('/')}/")
        if is_below and len(point) >= len(best):  # of two at the same place, the later one counts
            kind, _, options = rest.split(" ", 2)
            best, found = point, _Mount(type=kind, options=f"{fields.split()[5]},{options}")
    return found


def check_versions(_reading: SiteReading) -> Iterator[Finding]:
    """Compare installed packages with the versions that this release was tested with."""
    from importlib.metadata import PackageNotFoundError, requires, version

    yield Finding.ok("versions", f"Python {sys.version.split()[0]}")
    for ours in ("qrmi-workflows", "snakemake-executor-plugin-slurm-qpu"):
        try:
            yield Finding.ok("versions", f"{ours} {version(ours)}")
        except PackageNotFoundError:
            continue
        for requirement in requires(ours) or ():
            match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)", requirement)
            name, ranges = (match[1], match[2]) if match else (requirement, "")
            try:
                installed = version(name)
            except PackageNotFoundError:
                if "extra ==" not in requirement:
                    yield Finding.error(
                        "versions", f"{ours} needs {name}, which is missing.", f"Install {name}."
                    )
                continue
            if not _is_in(installed, ranges):
                yield Finding.warning(
                    "versions",
                    f"{name} {installed}: {ours} was tested with {ranges.strip()}.",
                    f"Install a version of {name} in this range.",
                )
            elif name == "qrmi":
                yield Finding.ok("versions", f"qrmi {installed}")


def _is_in(version: str, ranges: str) -> bool:
    """Return whether a version is in ranges like `>=1.2,<2`; other kinds of ranges are ignored."""
    for sign, bound in re.findall(r"(>=|<=|==|<|>)\s*([\d.]+)", ranges):
        one, other = _numbers(version), _numbers(bound)
        width = max(len(one), len(other))
        one, other = one + (0,) * (width - len(one)), other + (0,) * (width - len(other))
        met = {">=": one >= other, "<=": one <= other, "==": one == other}
        met |= {"<": one < other, ">": one > other}
        if not met[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_plugins(_reading: SiteReading) -> Iterator[Finding]:
    """Load the vendors and schedulers that the installed packages add."""
    for group, word in (("vendors", "vendor"), ("schedulers", "scheduler")):
        plugins = find_plugins(f"qrmi_workflows.{group}")
        for name, plugin in plugins.items():
            try:
                plugin.load()
            except Exception as error:  # a plugin's module may raise anything
                yield Finding.error(
                    "plugins",
                    f"{word} {name!r} ({plugin.value}) cannot be loaded: {error}.",
                    "Reinstall the package that adds it, or remove it.",
                )
        yield Finding.ok("plugins", f"{group}: {', '.join(sorted(plugins))}")
