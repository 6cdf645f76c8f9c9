"""Reap for other users, with their rights: one short-lived process for each user.

It does what the user's own `qpu reap` does: it releases leases, ends stages whose keeper has died,
so that no job waits for them for ever, and settles in budgets what dead processes have reserved.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from qrmi_workflows.client.package import import_qrmi
from qrmi_workflows.config.variables import QPU_CONFIG, QPU_STATE
from qrmi_workflows.errors import BudgetError, ConfigError
from qrmi_workflows.lease.allowances import settle_budgets
from qrmi_workflows.lease.reap import Reaped, reap
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.stages.guard import settle_stages
from qrmi_workflows.state.process import Owner
from qrmi_workflows.vendors.registry import registered_type, registered_types

__all__ = ["UserReaper", "UserState", "may_need_reaping", "user_states"]

_USER_SECONDS = 60.0  # how long the vendors of one user's leases may take, all together
_MOST_ANSWER = 2**20
_WAITS = b"?"  # what a process says when it has read its leases and waits for the list of live jobs
_LATER = (  # what is otherwise imported when it is used
    *("qrmi_workflows.budgets.ledger", "qrmi_workflows.budgets.settling"),
    "qrmi_workflows.lease.wanted",
)
_BELOW_HOME = ".local/state/qrmi-workflows"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """A user's state folder.

    Attributes:
        user: The user.
        folder: The folder, as `$QPU_STATE`.
    """

    user: pwd.struct_passwd
    folder: Path


def user_states(patterns: Iterable[str] = (), budgets: Path | None = None) -> list[UserState]:
    """Find the users who have open leases, stages, or reservations in budgets.

    Args:
        patterns: The users' state folders, with wildcards (`/scratch/*/qpu`); each is that of its
            owner. If there are none, the folders in the home folders of all users.
        budgets: The folder of the site's budgets, if it has any.
    """
    given = list(patterns)
    found = []
    user_of = cache(pwd.getpwuid)  # a directory service may take milliseconds for each
    for folder in (Path(path) for pattern in given for path in Path("/").glob(pattern.lstrip("/"))):
        with suppress(OSError, KeyError):
            found.append(UserState(user=user_of(folder.lstat().st_uid), folder=folder))
    if not given:
        found = [
            UserState(user=user, folder=Path(user.pw_dir) / _BELOW_HOME) for user in pwd.getpwall()
        ]
    # Root's own leases are those of its `qpu reap`; anybody else can only reap their own.
    others = {each.user.pw_uid for each in found} - {0} if os.geteuid() == 0 else {os.getuid()}
    own = [each for each in found if each.user.pw_uid in others]
    return [each for each in own if may_need_reaping(each, budgets)]


def may_need_reaping(state: UserState, budgets: Path | None = None) -> bool:
    """Return whether a user has leases, stages or reservations.

    Args:
        state: The user's state folder.
        budgets: The folder of the site's budgets, if it has any.
    """
    ledgers = [state.folder / "budgets", *([] if budgets is None else [budgets])]
    return (
        _has_any(state.folder / "leases" / "open", ".json")
        or _has_any(state.folder / "stages")
        or any(_has_reservation(ledger, state.user.pw_name) for ledger in ledgers)
    )


def _has_any(folder: Path, suffix: str = "") -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(suffix) for entry in entries)
    except PermissionError:
        return True  # on NFS, root may not look
    except OSError:
        return False


def _has_reservation(ledger: Path, user: str) -> bool:
    if not (ledger / "ledger").is_dir():
        return False
    from qrmi_workflows.budgets.ledger import Ledger  # few sites have budgets

    try:
        return any(book.open for book in Ledger(ledger).user(user).all().values())
    except (BudgetError, ConfigError, OSError, ValueError):
        return True  # the user's process says what is wrong


@dataclass(slots=True)
class _Child:
    user: str
    pid: int
    reader: int
    writer: int
    answer: bytes = b""


class UserReaper:
    """Processes that read the leases of one user each, wait for the live jobs, and reap.

    Args:
        users: The state folders. Enter a `with` block to start.
    """

    def __init__(self, users: Iterable[UserState]) -> None:
        self._users = list(users)
        self._children: list[_Child] = []
        self._live = -1

    def __enter__(self) -> Self:
        if self._users:
            _import_all()
        self._live = os.memfd_create("live-jobs")
        for each in self._users:
            self._children.append(self._start(each))
        _read_all(self._children, until=_WAITS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._children:
            os.close(child.reader)
            with suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        os.close(self._live)

    @property
    def waits(self) -> bool:
        """Whether some process needs to know which jobs are live."""
        return any(child.answer == _WAITS for child in self._children)

    def answer(self, live: set[str] | None) -> None:
        """Tell all processes which jobs are live; `None` if that is not known, or was not asked."""
        cluster = this_scheduler().this_cluster() if live is not None and self.waits else None
        known = None if live is None else sorted(live)
        # In a file, and not in the pipes: writing to a process that a user has stopped would block.
        with os.fdopen(os.dup(self._live), "wb") as file:
            file.write(json.dumps({"cluster": cluster, "live": known}).encode())
        for child in self._children:
            os.close(child.writer)

    def outcomes(self) -> Iterator[tuple[str, Reaped]]:
        """Wait for the processes, and yield each user and outcome."""
        _read_all(self._children)
        for child in self._children:
            leases = child.answer.lstrip(_WAITS).partition(b"\n")[0]
            try:
                found = [_outcome(each) for each in json.loads(leases)]
            except (ValueError, TypeError, RecursionError):
                reason = "the process that reaps for this user did not end in time, or failed."
                found = [Reaped(lease="", qpu="", released=False, error=reason)]
            yield from ((child.user, outcome) for outcome in found)

    def ended_stages(self) -> Iterator[tuple[str, str]]:
        """Yield the users whose stages were ended, and what `qpu reap` says; after `outcomes`."""
        for child in self._children:
            with suppress(ValueError, TypeError, RecursionError):
                for line in json.loads(child.answer.partition(b"\n")[2] or b"[]"):
                    yield child.user, _printable(str(line))

    def _start(self, state: UserState) -> _Child:
        reader, childs_writer = os.pipe()
        childs_reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                for other in self._children:
                    os.close(other.reader)
                    os.close(other.writer)
                os.close(reader)
                os.close(writer)
                _reap_as(state, childs_reader, childs_writer, self._live)
            finally:
                os._exit(1)
        os.close(childs_reader)
        os.close(childs_writer)
        return _Child(user=state.user.pw_name, pid=pid, reader=reader, writer=writer)


def _read_all(children: Iterable[_Child], until: bytes = b"") -> None:
    """Read what processes say until they end, or say something: all at once, for a limited time.

    A user can keep the own process from answering, which must not be at the others' expense.
    """
    limit = time.monotonic() + _USER_SECONDS
    poll, waiting = select.poll(), {child.reader: child for child in children}
    for reader in waiting:
        poll.register(reader, select.POLLIN)
    while waiting and (left := limit - time.monotonic()) > 0:
        for reader, _event in poll.poll(left * 1000):
            child, data = waiting[reader], os.read(reader, 65536)
            child.answer += data
            if not data or until or len(child.answer) >= _MOST_ANSWER:
                poll.unregister(reader)
                del waiting[reader]


def _import_all() -> None:
    """Import what reaping needs, because a user may not be able to read root's Python."""
    import_qrmi()
    this_scheduler()
    for name in registered_types():
        registered_type(name)
    for name in _LATER:
        import_module(name)
    Owner.this_process(None).is_alive()


def _outcome(document: dict[str, Any]) -> Reaped:
    """Return an outcome that a user's process reports, without what could harm a terminal."""
    shown: dict[str, Any] = {
        key: _printable(value) for key, value in document.items() if isinstance(value, str)
    }
    return Reaped(**{**shown, "released": document["released"] is True})


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)[:1000]


def _reap_as(state: UserState, reader: int, writer: int, live: int) -> NoReturn:
    user = state.user
    if os.geteuid() == 0:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    for name in (QPU_CONFIG, "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update({"HOME": user.pw_dir, "USER": user.pw_name, QPU_STATE: str(state.folder)})
    os.chdir("/")

    @cache
    def ask() -> dict[str, Any]:
        os.write(writer, _WAITS)
        os.read(reader, 1)  # until root closes the pipe
        return dict(json.loads(os.pread(live, os.fstat(live).st_size, 0)))

    def live_jobs(cluster: str | None) -> set[str] | None:
        answer = ask()
        is_this = cluster in (None, answer["cluster"])
        return set(answer["live"]) if is_this and answer["live"] is not None else None

    try:
        outcomes = reap(live_jobs=live_jobs)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        outcomes = [Reaped(lease="", qpu="", released=False, error=reason)]
    os.write(writer, json.dumps([asdict(each) for each in outcomes]).encode() + b"\n")
    # Last, and not at the leases' expense: these sessions may be paid for.
    os.write(writer, json.dumps(_settle()).encode())
    os._exit(0)


def _settle() -> list[str]:
    """End the stages whose keeper has died, and settle the budgets; return what to say about it."""
    said = []
    for settle in (_settle_stages, settle_budgets):
        try:
            said += settle() or []
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def _settle_stages() -> list[str]:
    return [f"stage {each.stage!r} has ended: {each.reason}" for each in settle_stages()]
