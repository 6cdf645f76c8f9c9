"""A QPU's lanes among processes: locked files, which a holder's child processes may borrow.

A lane in use is a locked file. A *call* that holds one writes a token into the file, and names both
in `$QPU_HELD_LANES`. A process that inherits the variable, and finds the lane still locked under
that token, borrows it: it locks the file `LANE.loan`, for one task or one call at a time. A
borrowed lane can be lent on, by `LANE.loan.loan`.

Those who wait for a lane stand in a queue, so that a process with one task gets its turn although
another one has hundreds.

However a process dies, its locks end. If a lane's holder dies first, the lane is not free before
its loan has ended too: nobody takes a lane whose loan is locked.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from qrmi_workflows.config.variables import QPU_HELD_LANES
from qrmi_workflows.state.locks import hold_any_lock, is_locked

__all__ = ["HeldLane", "hold_lane", "inherited_lanes", "lent_to_children"]

_LOAN = ".loan"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLane:
    """A lane that a call holds.

    Attributes:
        path: The locked file.
        tokens: The token in that file; for a loan, after those of the lanes that it is a loan of.
    """

    path: Path
    tokens: tuple[str, ...]

    @property
    def loan(self) -> Path:
        """The file to lock in order to borrow this lane."""
        return _loan_of(self.path)

    def is_held(self) -> bool:
        """Return whether the call still holds the lane, and its lenders theirs."""
        path = self.path
        for token in reversed(self.tokens):
            if not _is_held_under(path, token):
                return False
            path = path.with_name(path.name.removesuffix(_LOAN))
        return True


@contextmanager
def hold_lane(
    lanes: Sequence[Path],
    lenders: Callable[[], Iterable[HeldLane]],
    is_stopped: Callable[[], bool],
    *,
    for_call: bool = False,
) -> Iterator[HeldLane | None]:
    """Wait until a lane is free, and hold it; if there are lenders, borrow one of theirs instead.

    Args:
        lanes: The lanes' files; their folder must exist.
        lenders: Returns the held lanes that this process may borrow; called again while it waits.
        is_stopped: Tells whether to stop waiting.
        for_call: Whether this process's children may borrow the lane in turn.

    Yields:
        The lane that is held; `None` if the wait was stopped.

    Raises:
        OSError: A file could not be created, or its file system has no locks.
    """
    with ExitStack() as stack:
        while lent := {lender.loan: lender for lender in lenders()}:
            loan = stack.enter_context(
                _hold_any(lent, lambda: is_stopped() or not list(lenders()), for_call=for_call)
            )
            if loan is not None or is_stopped():
                break
        else:
            queue = lanes[0].with_name("queue")
            queue.mkdir(exist_ok=True, mode=0o700)
            loan = stack.enter_context(
                _hold_any(dict.fromkeys(lanes), is_stopped, for_call=for_call, queue=queue)
            )
        yield loan


@contextmanager
def _hold_any(
    files: Mapping[Path, HeldLane | None],
    is_stopped: Callable[[], bool],
    *,
    for_call: bool,
    queue: Path | None = None,
) -> Iterator[HeldLane | None]:
    """Hold one of these files, each of which is a lane, or the loan of a lender's lane."""
    token = uuid.uuid4().hex if for_call else ""

    def accept(path: Path, file: FileIO) -> bool:
        # In this order: a process that borrows this lane locks the loan and then reads the token.
        # So either it sees that its lender has gone, or the loan is seen to be locked here.
        _write(file, token)
        lender = files[path]
        return not _is_lent(path) and (lender is None or lender.is_held())

    with hold_any_lock(list(files), is_stopped, accept, queue) as path:
        if path is None:
            yield None
        else:
            lender = files[path]
            yield HeldLane(path=path, tokens=(*(lender.tokens if lender else ()), token))


@contextmanager
def lent_to_children(lane: HeldLane) -> Iterator[None]:
    """Let processes that are started in this block borrow a lane."""
    os.environ[QPU_HELD_LANES] = _to_text([*_read(os.environ), lane])
    try:
        yield
    finally:
        rest = [each for each in _read(os.environ) if each != lane]
        os.environ[QPU_HELD_LANES] = _to_text(rest)
        if not rest:
            del os.environ[QPU_HELD_LANES]


def inherited_lanes(folder: Path, environ: Mapping[str, str] = os.environ) -> list[HeldLane]:
    """Return the lanes in a folder that a process with this environment may borrow."""
    return [lane for lane in _read(environ) if lane.path.parent == folder]


def _read(environ: Mapping[str, str]) -> list[HeldLane]:
    with suppress(ValueError, TypeError, AttributeError):
        held = json.loads(environ.get(QPU_HELD_LANES, "{}"))
        return [HeldLane(path=Path(path), tokens=tuple(held[path])) for path in held]
    return []


def _to_text(lanes: Iterable[HeldLane]) -> str:
    return json.dumps({str(lane.path): lane.tokens for lane in lanes})


def _is_held_under(path: Path, token: str) -> bool:
    with suppress(OSError):
        return path.read_text(encoding="ascii") == token and is_locked(path)
    return False


def _write(file: FileIO, token: str) -> None:
    if token or os.fstat(file.fileno()).st_size:
        file.truncate(0)
        file.write(token.encode("ascii"))
        os.fsync(file.fileno())  # a borrower on another host must not read the last holder's token


def _is_lent(path: Path) -> bool:
    loan = _loan_of(path)
    while loan.exists():
        if is_locked(loan):
            return True
        loan = _loan_of(loan)
    return False


def _loan_of(path: Path) -> Path:
    return path.with_name(path.name + _LOAN)
