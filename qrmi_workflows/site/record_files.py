"""The lease records of one user, or of all users of the site.

What a user's processes write is believed about that user alone: in the site's folder, a file counts
only if it belongs to the user whose folder it is in, and whose that folder is, or to root, who has
written it about that user. Files are not opened through links, a FIFO does not block, and a line
has a limit, because root reads these files too.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from qrmi_workflows.config.variables import QPU_LEASE_RECORD
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.record import LeaseRecord, records_folder
from qrmi_workflows.lease.site_records import (
    closing_descriptor,
    is_folder_name,
    open_folder,
    site_records,
)
from qrmi_workflows.state.users import user_name

__all__ = ["Counted", "Problem", "Records", "own_records", "records_of_site"]

_LONGEST_LINE = 1 << 25  # 100,000 tasks have ids of 4 MB
_MOST_NOTED = 100
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ROOT = 0

_Parsed = tuple[LeaseRecord, tuple[datetime, datetime]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A line, or a file, that does not count.

    Attributes:
        where: The file, with the number of the line if it is one.
        reason: Why it does not count.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Counted(NamedTuple):
    """A lease record that counts: of which user, and when the lease was acquired and released."""

    user: str
    record: LeaseRecord
    acquired: datetime
    released: datetime


@dataclass(slots=True)
class Records:
    """Lease records, read one after the other; iterate over it once.

    Attributes:
        problems: What did not count; complete when all records have been read.
    """

    _source: Callable[[Records], Iterator[Counted]]
    problems: list[Problem] = field(default_factory=list)
    _noted: Counter[str] = field(default_factory=Counter)
    _read: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[Counted]:
        """Read the records."""
        return self._source(self)

    def is_repeated(self, record: LeaseRecord, *, user: str, owner: int) -> bool:
        """Return whether a file of this owner had this lease before.

        Whoever released it was killed after recording it, and the reaper has recorded it again.
        """
        lease = hash((user, owner, record.lease))  # a forged id may be long
        if lease in self._read:
            return True
        self._read.add(lease)
        return False

    def note(self, where: object, reason: str) -> None:
        """Note that a line or a file does not count; of a file's lines, name only the first ones.

        A user's file may have any number of them.
        """
        file = str(where).partition(":")[0]
        self._noted[file] += 1
        if self._noted[file] <= _MOST_NOTED:
            self.problems.append(Problem(where=str(where), reason=reason))
        elif self._noted[file] == _MOST_NOTED + 1:
            self.problems.append(Problem(where=file, reason="further lines do not count, either"))


def own_records(months: Callable[[str], bool], environ: Mapping[str, str] = os.environ) -> Records:
    """Return this user's records, from the state folder and the site's, or `$QPU_LEASE_RECORD`.

    Those of leases that the site holds for the user's jobs are in the site's folder alone.

    Args:
        months: Returns whether the records of a month (`2026-11`) are wanted.
        environ: The environment.
    """

    def read(records: Records) -> Iterator[Counted]:
        named, user = environ.get(QPU_LEASE_RECORD), user_name()
        folder = None if named else site_records(environ)
        seen: set[str] = set()
        if folder is not None:
            for record, times in _read_own(records, folder, user, months):
                seen.add(record.lease)
                yield Counted(user, record, *times)
        for file in [Path(named)] if named else sorted(records_folder(environ).glob("*.jsonl")):
            if named or months(file.name[:7]):
                for record, times in _read_file(records, file, owners=None):
                    if record.lease not in seen:
                        yield Counted(record.user or user, record, *times)

    return Records(read)


def records_of_site(
    months: Callable[[str], bool], environ: Mapping[str, str] = os.environ
) -> Records:
    """Return the records of all users of the site.

    Args:
        months: As `own_records` takes it.
        environ: The environment.

    Raises:
        ConfigError: The site does not collect records, or its folder cannot be read.
    """
    folder = site_records(environ)
    if folder is None:
        raise ConfigError(
            "this site does not collect the records of its users: site.toml sets no `records` in "
            "[site]. Add it, or leave out --all to see your own."
        )
    try:
        users = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}. Create the folder that `records` in [site] of site.toml "
            "names, or correct the name."
        ) from error

    def read(records: Records) -> Iterator[Counted]:
        with closing_descriptor(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as site:
            for user in users:
                for record, times in _read_user(records, folder, site, user, months):
                    yield Counted(user, record, *times)

    return Records(read)


def _read_own(
    records: Records, folder: Path, user: str, months: Callable[[str], bool]
) -> Iterator[_Parsed]:
    """Read this user's records in the site's folder, which the user need not be able to list."""
    try:
        if not (folder / user).exists():  # no lease has been recorded yet
            return
        number = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        records.note(folder, str(error.strerror))
        return
    with closing_descriptor(number) as site:
        yield from _read_user(records, folder, site, user, months)


def _read_user(
    records: Records, folder: Path, site: int, user: str, months: Callable[[str], bool]
) -> Iterator[_Parsed]:
    uid = _uid_of(user)
    if uid is None:
        records.note(folder / user, "no user has this name")
        return
    try:
        number = open_folder(user, site)
    except OSError as error:
        hint = "; run the command as root" if isinstance(error, PermissionError) else ""
        records.note(folder / user, f"{error.strerror}{hint}")
        return
    with closing_descriptor(number) as own:
        # Its owner can rename it, and put into it what root has written about others.
        if (owner := os.fstat(own).st_uid) not in (uid, _ROOT):
            records.note(folder / user, _reason_of(owner))
            return
        for name in sorted(entry.name for entry in os.scandir(own)):
            if name.endswith(".jsonl") and months(name[:7]):
                where = folder / user / name
                yield from _read_file(
                    records, where, owners=(uid, _ROOT), name=name, parent=own, user=user
                )


def _reason_of(owner: int) -> str:
    return f"belongs to user {user_name(owner)}, so it does not count"


def _uid_of(user: str) -> int | None:
    if not is_folder_name(user):
        return None
    with suppress(KeyError):
        return pwd.getpwnam(user).pw_uid
    return int(user) if user.isascii() and user.isdecimal() else None


def _read_file(
    records: Records,
    where: Path,
    *,
    owners: tuple[int, ...] | None,
    name: str | None = None,
    parent: int | None = None,
    user: str = "",
) -> Iterator[_Parsed]:
    try:
        number = os.open(name or where, _READ if owners else os.O_RDONLY, dir_fd=parent)
    except OSError as error:
        records.note(where, str(error.strerror))
        return
    with os.fdopen(number, "rb") as file:
        status = os.fstat(number)
        if owners is not None and status.st_uid not in owners:
            records.note(where, _reason_of(status.st_uid))
        elif owners is not None and not stat.S_ISREG(status.st_mode):
            records.note(where, "is not a file")
        else:
            count = 0
            while line := file.readline(_LONGEST_LINE):
                count += 1
                if len(line) == _LONGEST_LINE:
                    records.note(f"{where}:{count}", "too long; the rest of the file is left out")
                    return
                if (parsed := _parse(records, line, where, count)) is None:
                    continue
                # The user may have moved the file here from another folder.
                if owners is not None and status.st_uid == _ROOT and parsed[0].user != user:
                    records.note(f"{where}:{count}", f"root's record of user {parsed[0].user}")
                elif not records.is_repeated(parsed[0], user=user, owner=status.st_uid):
                    yield parsed


def _parse(records: Records, line: bytes, where: Path, count: int) -> _Parsed | None:
    if not line.strip():
        return None
    try:
        record = LeaseRecord.from_json(line.decode())
        return record, record.times()
    except ValueError as error:
        reason = str(error).removeprefix("not a lease record: ")
        records.note(f"{where}:{count}", f"not a lease record: {reason}")
        return None
