"""The ledger: the books of all users of a site, or those of one user alone.

A ledger is a folder on the shared file system::

    lock                    held while a task draws from the budget of an account
    ledger/USER/lock        held while one of the user's books changes
    ledger/USER/ACCOUNT.json

Each user's folder belongs to that user, and so do the books in it; anything else does not count:
nobody writes another's book. Books are read by all, because the budget of an account is spent by
all of its users. A change is one atomic write under a lock, so a process may be killed at any time.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from qrmi_workflows.budgets.book import Book
from qrmi_workflows.budgets.limits import Limit, require_name
from qrmi_workflows.errors import BudgetError, ConfigError
from qrmi_workflows.state.files import sync_folder
from qrmi_workflows.state.locks import hold_any_lock

__all__ = ["NO_ACCOUNT", "Ledger", "UserLedger", "this_user", "used"]

logger = logging.getLogger(__name__)

NO_ACCOUNT = "-"
"""The name of the book for tasks without an account; no account has this name."""

_LOCK_SECONDS = 30.0
_LARGEST_FILE = 16_000_000
_NEW = ".new-"


def this_user() -> str:
    """Return this process's user.

    Raises:
        ConfigError: The user database has no entry for it, or an unusual name.
    """
    try:
        return require_name(pwd.getpwuid(os.getuid()).pw_name, "user")
    except KeyError as error:
        raise ConfigError(
            f"the user database has no name for user {os.getuid()}, whose budget is needed. Run on "
            "a host, or in a container, that knows the user."
        ) from error


class Ledger:
    """The books of all users below one folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.books = folder / "ledger"

    def prepare(self, *, for_all: bool = False) -> None:
        """Create the folders.

        Args:
            for_all: Let all users of the machine keep their books here; for root.

        Raises:
            OSError: A folder could not be created.
        """
        self.books.mkdir(parents=True, exist_ok=True, mode=0o755 if for_all else 0o700)
        if for_all:
            self.folder.chmod(0o755)
            self.books.chmod(0o1777)  # sticky: each user may only remove their own
            descriptor = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
            os.fchmod(descriptor, 0o666)
            os.close(descriptor)

    def user(self, name: str) -> UserLedger:
        """Return the books of one user."""
        return UserLedger(self, require_name(name, "user"))

    def users(self) -> Iterator[UserLedger]:
        """Return the books of all users that have any."""
        for path in sorted(self.books.iterdir() if self.books.is_dir() else ()):
            with suppress(ConfigError):  # not a user's folder
                yield self.user(path.name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for the budgets that several users share.

        Raises:
            BudgetError: Another process does not let it go.
        """
        with _hold(self.folder / "lock"):
            yield


class UserLedger:
    """The books of one user: one for each account.

    Args:
        ledger: The ledger.
        name: The user's name.
    """

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.ledger = ledger
        self.name = name
        self.folder = ledger.books / name

    @classmethod
    def of_book(cls, path: Path) -> Self:
        """Return the books among which one is."""
        return cls(Ledger(path.parents[2]), require_name(path.parent.name, "user"))

    def path(self, account: str | None) -> Path:
        """Return the file of the book for an account."""
        name = NO_ACCOUNT if account is None else require_name(account, "account")
        return self.folder / f"{name}.json"

    def read(self, account: str | None) -> Book:
        """Return a book; an empty one if there is none, or it is not the user's own.

        Raises:
            ValueError: It is the user's own, but malformed.
        """
        with _opened_folder(self.folder, self.name) as folder:
            return Book() if folder is None else _read_book(folder, self.path(account), self.name)

    def all(self) -> dict[str | None, Book]:
        """Return all books, by account.

        Raises:
            ValueError: One of them is malformed.
        """
        books: dict[str | None, Book] = {}
        with _opened_folder(self.folder, self.name) as folder:
            if folder is None:
                return books
            for file in sorted(self.folder.glob("*.json")):
                account = None if file.stem == NO_ACCOUNT else file.stem
                with suppress(ConfigError):  # not a book's name
                    books[account] = _read_book(folder, self.path(account), self.name)
        return books

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for changes to the books; create the user's folder if there is none.

        Raises:
            BudgetError: The folder is another user's, or another process does not let go.
        """
        try:
            self.ledger.books.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True)
            with _opened_folder(self.folder, self.name) as folder:
                if folder is None:
                    raise BudgetError(
                        f"{self.folder}: not a folder of user {self.name!r}: what the user spends "
                        "cannot be recorded. Ask your administrators to remove it.",
                        f"user {self.name}",
                    )
                if stat.S_IMODE(os.fstat(folder).st_mode) != 0o755:  # the umask
                    os.fchmod(folder, 0o755)
                # Whoever can open the file can hold its lock, so nobody else may.
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open("lock", flags, 0o600, dir_fd=folder))
        except OSError as error:
            raise _unusable(error, self.folder) from error
        with _hold(self.folder / "lock"):
            yield

    def write(self, account: str | None, book: Book) -> None:
        """Write a book; the caller holds the lock.

        Raises:
            BudgetError: The file could not be written; the old one is unchanged.
        """
        path = self.path(account)
        new = path.with_name(f"{_NEW}{uuid.uuid4().hex}")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o644)  # whatever the umask is: all of an account read it
                file.write(book.to_json())
                file.flush()
                os.fsync(descriptor)
            new.rename(path)
            sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise _unusable(error, path) from error

    def tidy(self) -> None:
        """Remove what killed processes have left half-written; the caller holds the lock."""
        for path in self.folder.glob(f"{_NEW}*"):
            with suppress(OSError):
                path.unlink()


def used(
    ledger: Ledger, limit: Limit, user: str, day: str, members: frozenset[str] | None = None
) -> tuple[int, int]:
    """Return how much of a budget was spent, and how much is reserved.

    Args:
        ledger: The ledger.
        limit: The budget.
        user: The user who asks.
        day: A day in the period.
        members: Of the budget of an account, the users who may charge jobs to it, in lower case;
            nobody else's books count. `None` if they are not known: then all do.

    Raises:
        BudgetError: The user's own book is malformed.
    """
    spent = reserved = 0
    for owner in ledger.users() if limit.scope == "account" else [ledger.user(user)]:
        if members is not None and limit.scope == "account" and owner.name.lower() not in members:
            if owner.path(limit.name).exists():
                logger.info("%s: does not count: no member of %s", owner.folder, limit.name)
            continue
        try:
            if limit.scope == "account":
                books = [owner.read(limit.name)]
            else:  # the jobs of a stage may be charged to different accounts
                books = list(owner.all().values())
        except (ValueError, OSError) as error:
            if owner.name == user:
                raise BudgetError(
                    f"{owner.folder}: not a ledger: {error}. Ask your administrators to correct "
                    "or remove it.",
                    limit.describe(),
                ) from error
            logger.warning("%s: does not count: %s", owner.folder, error)
            continue
        spent += sum(book.spent(limit, day) for book in books)
        reserved += sum(book.reserved(limit, day) for book in books)
    return spent, reserved


@contextmanager
def _hold(lock: Path) -> Iterator[None]:
    limit = time.monotonic() + _LOCK_SECONDS
    with ExitStack() as stack:
        try:
            held = stack.enter_context(hold_any_lock([lock], lambda: time.monotonic() > limit))
        except OSError as error:
            raise _unusable(error, lock) from error
        if held is None:
            raise BudgetError(
                f"{lock}: another process has held the lock of the ledger for {_LOCK_SECONDS:g} s; "
                "nothing was submitted. Try again; if that does not help, find the process "
                "(`lslocks`).",
                retryable=True,
            )
        yield


def _unusable(error: OSError, path: Path) -> BudgetError:
    return BudgetError(
        f"the ledger of the budgets cannot be used: {error.filename or path}: "
        f"{error.strerror or error}; nothing was submitted. Ask your administrators to free some "
        "space, or to correct its permissions."
    )


@contextmanager
def _opened_folder(path: Path, user: str) -> Iterator[int | None]:
    """Open a user's folder; yield `None` if there is none, or it is not the user's own."""
    try:
        uid = pwd.getpwnam(user).pw_uid
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (KeyError, OSError):
        yield None
        return
    try:
        yield folder if os.fstat(folder).st_uid == uid else None
    finally:
        os.close(folder)


def _read_book(folder: int, path: Path, user: str) -> Book:
    """Read a book in an opened folder of its user's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path.name, flags, dir_fd=folder)
    except FileNotFoundError:
        return Book()
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        found = os.fstat(descriptor)
        # A hard link may put another user's file here.
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.fstat(folder).st_uid:
            logger.warning("%s: does not count: it is not a file of user %r", path, user)
            return Book()
        if found.st_size > _LARGEST_FILE:
            raise ValueError(f"{path.name} has {found.st_size} bytes")
        return Book.from_json(file.read())
