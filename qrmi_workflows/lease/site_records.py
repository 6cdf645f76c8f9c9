"""The site's folder of all users' lease records (`[site] records` in site.toml).

It has a folder for each user, with files that belong to the user, or to root, who may release the
leases of others: that is what makes a record credible. So no file is written through a link, or
into a folder that belongs to somebody else, and `site.record_files` reads by the same rules.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.config.site import find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.state.users import uid_of, user_name

__all__ = ["closing_descriptor", "is_folder_name", "open_folder", "save_for_site", "site_records"]

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SITE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # which users need not be able to list
_ROOT = 0


def site_records(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the site's folder of records; `None` if the site has none, or no policy."""
    try:
        return load_site_policy(find_site_policy(environ)).folders.records
    except (ConfigError, OSError):  # what needs the policy reports the error
        return None


def is_folder_name(user: str) -> bool:
    """Return whether a user's name can be the name of a folder."""
    return user.isprintable() and "/" not in user and not user.startswith((".", "-")) and user != ""


def save_for_site(record: LeaseRecord, environ: Mapping[str, str] = os.environ) -> None:
    """Append a record to its user's file for this month and host, if the site collects records.

    Raises:
        OSError: It could not be written.
    """
    folder = site_records(environ)
    if folder is None:
        return
    if not is_folder_name(record.user):
        raise PermissionError(f"{folder}: user {record.user!r} cannot have a folder")
    with closing_descriptor(os.open(folder, _SITE)) as site:
        _create_folder(record.user, site)
        with closing_descriptor(open_folder(record.user, site)) as own:
            _require_own(os.fstat(own).st_uid, folder / record.user, record.user)
            host = os.uname().nodename + ("-root" if os.geteuid() == _ROOT else "")
            name = f"{datetime.now(UTC):%Y-%m}-{host}.jsonl"
            _append(name, record.to_json(), own, where=folder / record.user / name)


def open_folder(name: str, parent: int) -> int:
    """Open a folder in another one, not through a link; return its descriptor."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=parent)


@contextmanager
def closing_descriptor(number: int) -> Iterator[int]:
    """Close a file's or a folder's descriptor at the end."""
    try:
        yield number
    finally:
        os.close(number)


def _create_folder(user: str, site: int) -> None:
    """Create a user's folder; a setgid bit on the site's says whose group may read it."""
    # Without fchmod: it would take the setgid bit away from a user who is not in that group.
    mode = 0o750 if os.fstat(site).st_mode & stat.S_ISGID else 0o700
    with suppress(FileExistsError):
        os.mkdir(user, mode, dir_fd=site)
        owner = uid_of(user)
        if os.geteuid() == _ROOT and owner is not None:  # who has not had a lease of their own yet
            os.chown(user, owner, -1, dir_fd=site, follow_symlinks=False)


def _require_own(owner: int, where: Path, user: str) -> None:
    # Root writes for others. Anybody may have created a folder of this name, to read what is in it.
    allowed = {_ROOT, uid_of(user)} if os.geteuid() == _ROOT else {os.geteuid()}
    if owner not in allowed:
        raise PermissionError(f"{where} belongs to user {user_name(owner)}")


def _append(name: str, line: str, folder: int, *, where: Path) -> None:
    # In one write, without a lock: a host's processes append atomically, and no other host writes
    # to this file. A reader takes each line as it is, so one that was cut short spoils no other.
    with closing_descriptor(os.open(name, _APPEND, 0o640, dir_fd=folder)) as file:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{where} is not a file of user {os.geteuid()}")
        is_whole = status.st_size == 0 or os.pread(file, 1, status.st_size - 1) == b"\n"
        os.write(file, ("" if is_whole else "\n").encode() + f"{line}\n".encode())
