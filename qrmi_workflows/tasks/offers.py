"""Payloads that processes offer each other while they wait for a lane of one lease.

Each offer is a file beside the lanes' files, `ID.offer`, which its process keeps locked. The first
process that gets a lane is the *leader*: it renames compatible offers to `ID.LEADER.claimed`, and
runs one task for all. A claim and a withdrawal happen under one lock, so only one of them succeeds.
How far the task has come is told by the journal; `ID.LEADER.ended` tells how it ended.

While it has claims, a leader keeps a file locked in the journal. However a process dies, its locks
end: nobody claims an offer of a dead process, or waits for a dead leader.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

from qrmi_workflows.config.variables import OnStop
from qrmi_workflows.errors import QPUError
from qrmi_workflows.journal.coalesced import leader_file
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.locks import hold_lock, is_locked, lock_file
from qrmi_workflows.tasks.future import TaskFuture
from qrmi_workflows.tasks.limits import Coalesce, OnAmbiguous
from qrmi_workflows.tasks.waiting_room import Guest, WaitingRoom, may_share
from qrmi_workflows.vendors.base import Coalescible

__all__ = ["Claimed", "Leadership", "Offer", "Offers", "pause_after"]

logger = logging.getLogger(__name__)

_VERSION = 1
_MOST = 32  # offers of one process: it needs few others if it has more payloads
_FRACTION, _SHORTEST, _LONGEST = 0.05, 0.02, 0.5  # of a pause: share of the wait; seconds


def pause_after(seconds: float) -> float:
    """Return how long to pause between two looks at the folder, after a wait of some seconds."""
    return min(max(_FRACTION * seconds, _SHORTEST), _LONGEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A payload that another process offers.

    Attributes:
        path: The file of the claim.
        record: The payload's record in the journal.
        vendor: The payload's vendor.
        content: The payload.
        on_ambiguous: As in `TaskRun`.
        on_stop: What happens to its task if its process is stopped.
        limits: The limits of a task that it may share.
        needs: What it needs in order to share one.
    """

    path: Path
    record: Path
    vendor: str
    content: Mapping[str, Any]
    on_ambiguous: OnAmbiguous
    on_stop: OnStop
    limits: Coalesce
    needs: Coalescible

    @property
    def key(self) -> tuple[str, str, str]:
        """What must be equal for payloads to share a task."""
        return self.vendor, self.needs.key, self.on_ambiguous

    @classmethod
    def of(cls, guest: Guest, path: Path) -> Self:
        """Return the offer of a payload that waits in this process."""
        run = guest.future.run
        return cls(
            path=path,
            record=run.entry.path,
            vendor=run.payload.vendor,
            content=run.payload.content,
            on_ambiguous=run.on_ambiguous,
            on_stop=run.on_stop or run.default_on_stop(),
            limits=guest.limits,
            needs=guest.needs,
        )

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read an offer; return `None` if it is not one of this release."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("version") != _VERSION:
                return None
            document["record"] = Path(document["record"])
            document["limits"] = Coalesce(**document["limits"])
            document["needs"] = Coalescible(**document["needs"])
            return cls(path=path, **document)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None

    def to_json(self) -> str:
        """Render the offer's file."""
        shallow = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del shallow["path"]
        changed = {
            "record": str(self.record), "limits": asdict(self.limits), "needs": asdict(self.needs),
        }  # fmt: skip
        return json.dumps({"version": _VERSION, **shallow, **changed})

    def is_wanted(self) -> bool:
        """Return whether its process still waits for the result."""
        with suppress(OSError):
            return is_locked(self.path)
        return True


class Offers:
    """The offers of this process while it waits for a lane; `is_set` is called again and again.

    Args:
        folder: The lease's folder of offers; `None` if no other process can share the lease.
        room: The payloads that wait.
    """

    def __init__(self, folder: Path | None, room: WaitingRoom) -> None:
        self._folder = folder
        self._room = room
        self._start = time.monotonic()
        # Not at the first look: there may be a free lane.
        self._next_look: float | None = None
        self._made: dict[TaskFuture, tuple[Path, FileIO]] = {}
        self._is_claimed = False

    def is_set(self) -> bool:
        """Return whether to stop waiting for a lane: an offer is claimed, or see `WaitingRoom`.

        The name is that of `threading.Event`, because this ends the wait for a lane.
        """
        if self._room.is_set():
            return True
        now = time.monotonic()
        if self._next_look is None:
            self._next_look = now + _SHORTEST
        elif now >= self._next_look and self._folder is not None and not self._is_claimed:
            try:
                self._offer(self._folder)
                self._is_claimed = not all(path.exists() for path, _ in self._made.values())
            except (OSError, QPUError) as error:
                logger.warning("payloads are not offered to other processes: %s", error)
                self._folder = None
            self._next_look = time.monotonic() + pause_after(now - self._start)
        return self._is_claimed

    def withdraw(self) -> list[Claimed]:
        """Withdraw the offers; return those that another process has claimed."""
        claimed: list[Claimed] = []
        if not self._made:
            return claimed
        folder = next(iter(self._made.values()))[0].parent
        with _locked_if_there(folder):
            for future, (path, file) in self._made.items():
                with suppress(FileNotFoundError):
                    path.unlink()
                    _release(file)
                    continue
                found = next(folder.glob(f"{path.stem}.*"), path)
                leader = found.suffixes[0][1:]
                claimed.append(Claimed(future=future, path=found, file=file, leader=leader))
        self._made.clear()
        return claimed

    def _offer(self, folder: Path) -> None:
        for guest in self._room.guests()[:_MOST]:
            if guest.future in self._made:
                continue
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            name = f"{time.time_ns():020}-{uuid.uuid4().hex}"
            new, path = folder / f"new-{name}", folder / f"{name}.offer"
            file = _create_locked(new)
            try:
                file.write(Offer.of(guest, path).to_json().encode())
                new.rename(path)
            except BaseException:
                _release(file)
                new.unlink(missing_ok=True)
                raise
            self._made[guest.future] = path, file


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A payload of this process that another one has claimed.

    Attributes:
        future: The payload's future.
        path: The file of the claim, at the moment it was noticed.
        file: The same, open and locked.
        leader: The name of the task, and of the process that claimed it.
    """

    future: TaskFuture
    path: Path
    file: FileIO
    leader: str

    def ending(self) -> Mapping[str, Any] | None:
        """Return what the leader says of the end; nothing if it is dead; `None` before the end."""
        ended = self.path.with_suffix(".ended")
        record = self.future.run.entry.path
        is_led = is_locked(leader_file(record, self.leader))
        try:
            found = json.loads(ended.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None if is_led else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Leave the task, or note that its end was seen."""
        for suffix in (".claimed", ".ended"):
            with suppress(OSError):
                self.path.with_suffix(suffix).unlink()
        _release(self.file)


class Leadership:
    """The claims of a process that has a lane; `end` must be called.

    Args:
        folder: The lease's folder of offers; `None` if no other process can share the lease.
        first: A payload of this process, with which the others must agree.
    """

    def __init__(self, folder: Path | None, first: Path) -> None:
        self.name = uuid.uuid4().hex
        self.offers: list[Offer] = []
        self._folder = folder
        self._record = first
        self._file: FileIO | None = None

    def claim(self, guests: Sequence[Guest]) -> None:
        """Claim the offers that may share a task with these payloads, oldest first."""
        if self._folder is None or not guests:
            return
        try:
            if any(self._folder.glob("*.offer")):
                self._claim(self._folder, list(guests))
        except OSError as error:
            logger.warning("payloads of other processes are not joined: %s", error)

    def drop(self, offer: Offer) -> None:
        """Give a claim up, before the task is submitted."""
        self.offers.remove(offer)
        self._tell(offer, {})

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Tell the other processes how the task has ended."""
        for offer in self.offers:
            self._tell(offer, outcome)
        self.offers.clear()
        self._stop_leading()

    def _tell(self, offer: Offer, outcome: Mapping[str, Any]) -> None:
        try:
            if offer.is_wanted():
                ended = offer.path.with_suffix(".ended")
                write_atomically(ended, json.dumps(outcome), mode=0o600)
            offer.path.unlink(missing_ok=True)
        except OSError as error:  # the process goes on from the journal once this one has ended
            logger.info("%s: %s", offer.path, error)

    def _claim(self, folder: Path, chosen: list[Guest | Offer]) -> None:
        leader = leader_file(self._record, self.name)
        leader.parent.mkdir(mode=0o700, exist_ok=True)
        self._file = _create_locked(leader)  # first: a claim without a leader is one of a dead one
        with hold_lock(folder / "lock"):
            for path in sorted(folder.glob("*.offer")):
                if not is_locked(path):
                    path.unlink(missing_ok=True)
                    continue
                offer = Offer.load(path)
                if offer is None or not self._may_join(offer, chosen):
                    continue
                claim = path.with_suffix(f".{self.name}.claimed")
                path.rename(claim)
                self.offers.append(dataclasses.replace(offer, path=claim))
                chosen.append(offer)
        if not self.offers:
            self._stop_leading()

    def _may_join(self, offer: Offer, chosen: Sequence[Guest | Offer]) -> bool:
        # In one journal only: the leader writes the records of all.
        is_in_journal = offer.record.parents[3:4] == self._record.parents[3:4]
        return is_in_journal and may_share(chosen, offer)

    def _stop_leading(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                leader_file(self._record, self.name).unlink()
            _release(self._file)
            self._file = None


@contextmanager
def _locked_if_there(folder: Path) -> Iterator[None]:
    if not folder.exists():  # the lease has ended
        yield
        return
    with hold_lock(folder / "lock"):
        yield


# A lock lasts until every duplicate of its descriptor is closed, also in a forked child.
_files: weakref.WeakSet[FileIO] = weakref.WeakSet()


def _create_locked(path: Path) -> FileIO:
    file = lock_file(path)
    _files.add(file)
    return file


def _release(file: FileIO) -> None:
    with suppress(ValueError, OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _leave_to_parent() -> None:
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)
