"""A process's part in a stage of several jobs: join it, follow its renewals, leave it.

Only the keeper acquires the QPU. A member whose session has ended asks for another one with a file
in the folder `wishes`, and waits for the next publication. A member that waits looks at the files
again and again: they are the only channel between hosts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.variables import (
    QPU_LANES,
    QPU_STAGE_MEMBER,
    QPU_STAGE_WAIT,
    lane_wait_seconds,
    requested_lanes,
    stage_wait_seconds,
)
from qrmi_workflows.errors import LeaseError, QPUError, RequestError, SessionEndedError
from qrmi_workflows.lease.stage import Published, Stage, StageState
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.locks import create_locked, is_locked
from qrmi_workflows.state.process import Owner

__all__ = ["KEEPER_SECONDS", "Membership", "is_member_alive"]

logger = logging.getLogger(__name__)

KEEPER_SECONDS = 30.0
"""The keeper counts as dead if it has not touched its file for so many seconds."""

_LOOK_SECONDS = 0.2
_WATCH_SECONDS = 2.0
_NEXT_MESSAGE = 600.0


class Membership:
    """This process's part in a stage; created by `join`.

    Attributes:
        name: The stage's name.
        published: What the keeper has published, and this process uses.
    """

    def __init__(self, stage: Stage) -> None:
        self.name = stage.name
        self.folder = stage.folder
        self.stage = stage
        self.published = Published(stage=stage.id, generation=0, variables={})
        self._keeper = _Pulse(self.folder.alive)
        self._file: FileIO | None = None
        self._path: Path | None = None
        self._pid = os.getpid()

    @classmethod
    def join(cls, stage: Stage, stop: threading.Event) -> Membership:
        """Join a stage; wait until its lease can be used.

        Args:
            stage: The stage.
            stop: Set this event to give up.

        Raises:
            RequestError: The stage has fewer lanes than `$QPU_LANES`.
            LeaseError: It has ended, or did not become ready in time.
        """
        joined = cls(stage)
        joined._enter()
        try:
            joined.await_newer(stop)
            joined._require_lanes()
        except BaseException:
            joined.leave()
            raise
        if not joined.published.generation:
            joined.leave()
            raise LeaseError(f"joining stage {stage.name!r} was interrupted.", stage.qpu)
        return joined

    @property
    def qpu(self) -> JobQPU:
        """The QPU with its acquisition token."""
        return self.published.qpu

    @property
    def lanes(self) -> int:
        """How many tasks this process may run at once."""
        return requested_lanes() or self.stage.lanes or 1

    @property
    def file(self) -> Path | None:
        """The file that this process holds locked while it is a member."""
        return self._path

    def require_open(self) -> None:
        """Refuse a submission if the stage's lease cannot be used at the moment.

        Raises:
            SessionEndedError: It cannot; nothing was submitted.
        """
        stage = self._reload()
        if (
            stage.id == self.published.stage
            and stage.state is StageState.READY
            and stage.generation == self.published.generation
            and self._keeper_lives(stage)
        ):
            return
        raise SessionEndedError(
            f"the lease of stage {self.name!r} cannot be used at the moment: {_describe(stage)}",
            stage.qpu,
            retryable=True,
            had_no_effect=True,
        )

    def await_newer(self, stop: threading.Event, *, is_session_ended: bool = False) -> None:
        """Wait for another publication than the one that this process uses, and use it.

        Args:
            stop: Set this event to give up; then it returns.
            is_session_ended: Whether the vendor has said that the session has ended; then the
                keeper is asked for another. If not, the present publication will do as well, as
                soon as it can be used.

        Raises:
            LeaseError: The stage has ended, or its keeper did not come back in time.
        """
        waiting = _Waiting(self.name)
        while not stop.is_set():
            stage = self._reload()
            if stage.is_ended or stage.id != self.published.stage:
                raise _ended(stage, self.published.stage)
            lives = self._keeper_lives(stage)
            if lives and stage.state is StageState.READY:
                published = Published.load(self.folder)
                if published is not None and published.is_of(stage):
                    if stage.generation > self.published.generation or not is_session_ended:
                        self.stage, self.published = stage, published
                        return
                    self._ask_to_renew()
            waiting.look(stage, is_kept=lives)
            stop.wait(_LOOK_SECONDS)

    def stop_process_at_end(self) -> None:
        """Send this process SIGTERM once the stage has ended."""
        threading.Thread(target=self._await_end, name="stage", daemon=True).start()

    def leave(self) -> None:
        """Leave the stage; the keeper ends it some time after its last member has left."""
        if self._pid != os.getpid() or self._path is None:
            return
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._path = None
        if self._file is not None:
            self._file.close()

    def was_left_to_members(self) -> bool:
        """Return whether the keeper has ended, and this was the last process of its stage."""
        with suppress(QPUError, OSError):
            stage = self._reload()
            is_over = stage.is_ended or stage.id != self.published.stage
            return is_over and not any(map(is_member_alive, self.folder.members.iterdir()))
        return False

    def supervisor_was_killed(self) -> bool:
        """Return whether a supervisor has started this process, and has been killed since."""
        # The keeper starts no member; a supervisor may have, and is a member too.
        file = os.environ.get(QPU_STAGE_MEMBER)
        return bool(file) and not is_member_alive(Path(str(file)))

    def _await_end(self) -> None:
        while self._path is not None:
            time.sleep(_WATCH_SECONDS)
            with suppress(QPUError, OSError):
                stage = self._reload()
                if self._path is not None and (stage.is_ended or stage.id != self.published.stage):
                    logger.warning("%s", _ended(stage, self.published.stage))
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    def _enter(self) -> None:
        """Create this process's file among the members, locked until the process ends."""
        owner = Owner.this_process(this_job())
        path = self.folder.members / f"{owner.host}-{owner.pid}-{uuid.uuid4().hex[:8]}"
        # It gets its name once it is locked: the keeper removes members that are not.
        hidden = path.with_name(f".{path.name}")
        try:
            self.folder.members.mkdir(exist_ok=True, mode=0o700)
            self._file = create_locked(hidden)
            hidden.chmod(0o600)
            self._file.write(json.dumps(asdict(owner)).encode())
            hidden.rename(path)
        except OSError as error:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
            raise LeaseError(
                f"stage {self.name!r} could not be joined: {path}: {error.strerror or error}. Its "
                "folder must be writable, on a file system that has locks.",
                self.stage.qpu,
            ) from error
        self._path = path

    def _require_lanes(self) -> None:
        wanted, offered = requested_lanes(), self.stage.lanes
        if wanted is not None and offered is not None and wanted > offered:
            raise RequestError(
                f"${QPU_LANES}={wanted}: stage {self.name!r} has {offered} lanes, which all its "
                "processes share. Set a smaller number, or unset it."
            )

    def _reload(self) -> Stage:
        try:
            return Stage.load(self.folder)
        except FileNotFoundError as error:
            raise LeaseError(
                f"stage {self.name!r} is gone: {self.folder.path} was deleted. Open it again: "
                f"`qpu stage open {self.name} --qpu {self.stage.qpu}`.",
                self.stage.qpu,
                retryable=True,
            ) from error

    def _keeper_lives(self, stage: Stage) -> bool:
        if stage.keeper is None:
            return False
        lives = stage.keeper.is_alive()
        return self._keeper.beats() if lives is None else lives

    def _ask_to_renew(self) -> None:
        if self._path is None:
            return
        # In its own name: the keeper renews nothing for a process that has died.
        wish = self.folder.wishes / f"renew-{self.published.generation}-{self._path.name}"
        with suppress(OSError):
            wish.touch(mode=0o600)


class _Pulse:
    """Whether a file is touched again and again, by a process on another host."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: float | None = None
        self._changed = time.monotonic()

    def beats(self) -> bool:
        """Return whether the file has been touched lately, or may have been."""
        try:
            # Open it: on NFS, `stat` alone may answer from a cache, for up to a minute (nfs(5)).
            with FileIO(self._file) as opened:
                now = os.fstat(opened.fileno()).st_mtime
        except OSError:
            return False
        # Only changes count: two hosts' clocks need not agree.
        if now != self._last:
            self._last, self._changed = now, time.monotonic()
        return time.monotonic() - self._changed < KEEPER_SECONDS


class _Waiting:
    """The time that a member has waited for its stage, and what it has said about it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._since = time.monotonic()
        self._alone = 0.0  # seconds of it during which no keeper was alive
        self._last = self._since
        self._said = ""
        self._next = 0.0

    def look(self, stage: Stage, *, is_kept: bool) -> None:
        """Count the time since the last look; say what the wait is for, and end it in time."""
        now = time.monotonic()
        self._alone = 0.0 if is_kept else self._alone + now - self._last
        self._last = now
        what = _describe(stage) if is_kept or stage.keeper is None else "its keeper has died"
        limit = lane_wait_seconds() if is_kept else stage_wait_seconds()
        waited = now - self._since if is_kept else self._alone
        if what != self._said or waited >= self._next:
            self._said, self._next = what, waited + _NEXT_MESSAGE
            logger.warning("waiting for stage %r, for at most %.0f s: %s", self._name, limit, what)
        if waited >= limit:
            raise LeaseError(
                f"stage {self._name!r} could not be used for {waited:.0f} s: {what}. Tasks that "
                f"were submitted are found by a rerun. Check `qpu stage show {self._name}`, open "
                f"the stage again and rerun the step; ${QPU_STAGE_WAIT} sets how long to wait for "
                "a keeper.",
                stage.qpu,
                retryable=True,
            )


def _describe(stage: Stage) -> str:
    if stage.is_ended:
        return f"it has ended: {stage.reason or 'closed'}"
    if stage.keeper is None:
        return stage.reason or "its keeper has not started yet"
    if stage.state is StageState.OPENING:
        return stage.reason or "its keeper is acquiring the QPU"
    return stage.reason or "its keeper is renewing the session"


def _ended(stage: Stage, joined: str) -> LeaseError:
    reason = stage.reason or "closed"
    if stage.id != joined:
        reason = "it has ended, and was opened again since"
    return LeaseError(
        f"stage {stage.name!r} has ended: {reason.removesuffix('.')}. Open it again (`qpu stage "
        f"open {stage.name} --qpu {stage.qpu}`, or run the workflow again): a step that is run "
        "again finds the tasks that it has submitted.",
        stage.qpu,
        retryable=True,
    )


def is_member_alive(file: Path) -> bool:
    """Return whether the process that holds a member's file is alive."""
    with suppress(OSError):
        return is_locked(file)
    return True  # it cannot be told
