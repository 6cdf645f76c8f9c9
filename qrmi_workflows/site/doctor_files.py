"""Checks of a site's files: the policy, the definitions of QPUs, modes, folders, names."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.notices import BY_HAND, BY_STATE, operators, read_entries
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.site.reading import SiteReading
from qrmi_workflows.state.users import user_name
from qrmi_workflows.vendors.registry import registered_type, registered_types

_ROOTS_OWN = ("state", "maintenance")
_CREATE = {"budgets": "Set a budget (`qpu budget set`), which creates it"}

__all__ = [
    "check_definitions",
    "check_folders",
    "check_modes",
    "check_notices",
    "check_policy",
    "check_users",
]


def check_policy(reading: SiteReading) -> Iterator[Finding]:
    """Report each mistake in the site policy, with the line to correct."""
    for mistake in reading.mistakes:
        problem, _, remedy = mistake.rpartition(". ")
        yield Finding.error("policy", f"{problem}.", remedy)
    if reading.site is not None:
        offered = ", ".join(reading.site.qpus)
        yield Finding.ok("policy", f"{reading.site.path} offers {offered}")


def check_definitions(reading: SiteReading) -> Iterator[Finding]:
    """Compare the QPUs that are defined with those on offer."""
    offered = {} if reading.site is None else reading.site.qpus
    if reading.config_error is not None:
        # Where QRMI's SPANK plugin acquires all QPUs, only root need be able to read their file.
        if not offered or not all(policy.qpu_option for policy in offered.values()):
            problem, _, remedy = reading.config_error.rpartition(". ")
            yield Finding.error("definitions", f"{problem}.", remedy)
        return
    names = ", ".join([*reading.definitions, *(f"{name} (account)" for name in reading.accounts)])
    yield Finding.ok("definitions", f"{reading.config_path} defines {names or 'no QPU'}")
    for each in (*reading.definitions.values(), *reading.accounts.values()):
        if registered_type(each.type) is None:
            yield Finding.warning(
                "definitions",
                f"QPU {each.name!r}: no installed vendor has type {each.type!r}; installed are: "
                f"{', '.join(registered_types())}.",
                f"Correct `type` in {reading.config_path}, or install the vendor's package.",
            )
    for name, policy in offered.items():
        if name not in reading.definitions and not (policy.qpu_option or reading.accounts):
            yield Finding.error(
                "definitions",
                f"QPU {name!r} is offered by {reading.policy_path}, but {reading.config_path} does "
                "not define it.",
                "Add its definition, or remove its table from site.toml.",
            )


def check_modes(reading: SiteReading) -> Iterator[Finding]:
    """Check who can read the credentials, and who can change what the site does."""
    path = reading.config_path
    if path is not None and path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o007:
            yield Finding.error(
                "modes",
                f"{path} has mode {mode:04o}: every user can read or change its credentials.",
                f"Run `chmod 600 {path}`.",
            )
        elif mode & 0o070:
            group = _group_name(path.stat().st_gid)
            yield Finding.warning(
                "modes",
                f"{path} has mode {mode:04o}: members of {group!r} can read or change its "
                "credentials.",
                f"Run `chmod 600 {path}` unless that is meant.",
            )
        else:
            yield Finding.ok("modes", f"{path} has mode {mode:04o}")
    for each in (path, reading.policy_path):
        if each is not None and each.exists():
            yield from _check_owner(each)


def _check_owner(path: Path) -> Iterator[Finding]:
    found = path.stat()
    if found.st_uid not in (0, os.getuid()):
        yield Finding.error(
            "modes",
            f"{path} belongs to user {user_name(found.st_uid)!r}, who can change which QPUs you "
            "use, and how.",
            "Use a file of root's or of your own.",
        )
    for each in (path, path.parent):
        mode = stat.S_IMODE(each.stat().st_mode)
        is_open = mode & stat.S_IWOTH and not (each.is_dir() and mode & stat.S_ISVTX)
        if is_open and not (each == path and mode & 0o007 and path.suffix == ".json"):
            yield Finding.error(
                "modes",
                f"{each} has mode {mode:04o}: every user can change it.",
                f"Run `chmod o-w {each}`.",
            )


def check_users(reading: SiteReading) -> Iterator[Finding]:
    """Look up the users and groups of the policy in the system's databases."""
    kinds: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("users", "user", pwd.getpwnam),
        ("groups", "group", grp.getgrnam),
    )
    for policy in () if reading.site is None else reading.site.qpus.values():
        for key, word, look_up in kinds:
            for name in getattr(policy, key):
                try:
                    look_up(name)
                except KeyError:
                    place = "" if reading.site is None else reading.site.place(policy.name, key)
                    yield Finding.error(
                        "access",
                        f"QPU {policy.name!r}: unknown {word} {name!r} ({place}).",
                        f"Correct it, or add the {word}.",
                    )


def check_folders(reading: SiteReading) -> Iterator[Finding]:
    """Check the site's own folders."""
    if reading.site is None:
        return
    folders = reading.site.folders
    for key, folder, is_shared in (
        ("records", folders.records, True),
        ("budgets", folders.budgets, False),
        ("state", folders.state if folders.state.exists() else None, False),
        ("maintenance", folders.maintenance if folders.maintenance.exists() else None, False),
    ):
        if folder is None:
            continue
        what = f"{key} = {str(folder)!r}"
        if not folder.is_dir():
            yield Finding.error(
                "folders",
                f"{what}: there is no such folder.",
                f"{_CREATE.get(key, 'Create it')}, or correct `{key}` in {reading.site.path}.",
            )
            continue
        mode = stat.S_IMODE(folder.stat().st_mode)
        if key in _ROOTS_OWN and (unsafe := _unsafe(folder, operators(reading.site))):
            # The Prolog refuses it, and then acquires no QPU for any job.
            yield Finding.error(
                "folders",
                f"{what} {unsafe}: root's programs refuse it.",
                f"Run `chown root: {folder}; chmod go-w {folder}`, or correct `{key}` in "
                f"{reading.site.path}.",
            )
        elif mode & stat.S_IWOTH and not (is_shared and mode & stat.S_ISVTX):
            yield Finding.error(
                "folders",
                f"{what} has mode {mode:04o}: users can delete what others, or root, have written.",
                f"Run `chmod +t {folder}`." if is_shared else f"Run `chmod o-w {folder}`.",
            )
        else:
            yield Finding.ok("folders", f"{what} has mode {mode:04o}")


def check_notices(reading: SiteReading) -> Iterator[Finding]:
    """Check the messages about QPUs that are away, which administrators may have edited."""
    if reading.site is None:
        return
    for kind in (BY_HAND, BY_STATE):
        path = reading.site.folders.maintenance / kind
        try:
            entries = read_entries(path, operators(reading.site), strict=True)
        except ConfigError as error:
            problem, _, remedy = error.message.partition(". ")
            yield Finding.error(
                "notices", f"{problem}: QPUs that are away count as available.", remedy
            )
            continue
        for name in sorted(entries.keys() - reading.site.qpus.keys()):
            yield Finding.warning(
                "notices",
                f"{path}: QPU {name!r} is not one of {reading.site.path}.",
                "Correct the name, or remove the entry.",
            )


def _unsafe(folder: Path, owners: Collection[int]) -> str:
    """Return why root's programs refuse a folder of their own; empty if they do not."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is a link"
    if status.st_uid not in owners:
        return f"belongs to user {user_name(status.st_uid)!r}"
    is_open = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return f"has mode {stat.S_IMODE(status.st_mode):04o}" if is_open else ""


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
