"""`qpu doctor`: the site's budgets, and the ledger in which users record what they spend."""

from __future__ import annotations

import pwd
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from qrmi_workflows.budgets.estimates import FEWEST
from qrmi_workflows.budgets.limits import ANYBODY, Limit, limits_file, read_limits
from qrmi_workflows.config.findings import Finding
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.site.reading import SiteReading
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["check_budgets"]

_REPAIR = "Set any budget again, as root: `qpu budget set` creates and corrects both."


def check_budgets(reading: SiteReading) -> Iterator[Finding]:
    """Check the budgets, and that each user can record what is spent."""
    folder = None if reading.site is None else reading.site.folders.budgets
    if folder is None or not folder.is_dir():
        return  # `check_folders` reports a missing one
    try:
        limits = read_limits(folder)
    except ConfigError as error:
        yield Finding.error("budgets", error.message, "Without it, no task is submitted.")
        return
    if not limits:
        yield Finding.ok("budgets", "no budget is set, so none limits a task")
        return
    yield Finding.ok("budgets", f"{len(limits)} set in {folder}")
    for limit in limits:
        if limit.scope == "user" and limit.name != ANYBODY and not _is_user(limit.name):
            of_qpu = f" --qpu {limit.qpu}" if limit.qpu else ""
            command = f"qpu budget set user:{limit.name} none --per {limit.per}{of_qpu}"
            yield Finding.warning(
                "budgets",
                f"a budget of user {limit.name!r}: there is no such user on this host.",
                f"Correct the name in {limits_file(folder)}, or remove the budget: `{command}`.",
            )
    yield from _check_durations(reading, limits)
    for path, mode in ((folder / "ledger", 0o1777), (folder / "lock", 0o666)):
        found = _mode(path)
        if found != mode:
            has = "is missing" if found is None else f"has mode {found:04o}, not {mode:04o}"
            yield Finding.error(
                "budgets", f"{path} {has}: users cannot spend their budgets.", _REPAIR
            )


def _check_durations(reading: SiteReading, limits: Sequence[Limit]) -> Iterator[Finding]:
    """Name the QPUs whose tasks have no estimate, although a budget in seconds limits them."""
    in_seconds = [limit for limit in limits if limit.unit == "seconds"]
    for name, policy in {} if reading.site is None else reading.site.qpus.items():
        definition = reading.definitions.get(name)
        known = None if definition is None else registered_type(definition.type)
        if known is None or known.shot_seconds is not None or policy.task_seconds is not None:
            continue
        if any(limit.qpu in (None, name) for limit in in_seconds):
            yield Finding.warning(
                "budgets",
                f"QPU {name!r}: its vendor publishes no durations, so until {FEWEST} tasks of a "
                "user were measured, each reserves all that is left of a budget in seconds, and "
                "they run one at a time.",
                f"Set `task_seconds` for it in {reading.policy_path}: how long a task takes at "
                "most.",
            )


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except OSError:
        return None
