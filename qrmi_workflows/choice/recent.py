"""The choices that this user's processes have made in the last seconds.

The job or task that follows a choice is in no queue yet when the next choice is made, so it would
go to the same QPU. Each choice counts as one task more, until vendor and scheduler have been asked
again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qrmi_workflows.choice.cache import cache_file
from qrmi_workflows.state.files import append_line, read_tail, write_atomically
from qrmi_workflows.state.locks import try_lock

__all__ = ["RecentChoices", "one_at_a_time"]

_SECONDS = 30.0
_MARGIN = 1.0  # a choice of the last second before the vendor was asked was in no queue, either
_MOST_BYTES = 65536
_LOCK_SECONDS = 0.3


class RecentChoices:
    """The choices of the last seconds, by QPU."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._path = cache_file("recent.log", environ)
        self._choices = list(_read(self._path))

    def count(self, qpu: str, since: float) -> int:
        """Return how many choices of a QPU are not in its queue as it was at that time."""
        return sum(name == qpu and at >= since - _MARGIN for at, name in self._choices)

    def note(self, qpus: Iterable[str]) -> None:
        """Add choices; if the cache cannot be written, others do not see them."""
        if self._path is None:
            return
        now = time.time()
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path.exists() and self._path.stat().st_size > _MOST_BYTES:
                kept = "".join(f"{at:.3f} {name}\n" for at, name in self._choices)
                write_atomically(self._path, kept)
            for qpu in qpus:
                append_line(self._path, f"{now:.3f} {qpu}")


def _read(path: Path | None) -> Iterator[tuple[float, str]]:
    if path is None:
        return
    now = time.time()
    with suppress(OSError):
        for line in read_tail(path, _MOST_BYTES).splitlines():
            at, _, name = line.partition(" ")
            with suppress(ValueError):
                if abs(now - float(at)) < _SECONDS:
                    yield float(at), name


@contextmanager
def one_at_a_time(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Let this user's processes choose one after the other; after a moment, all the same."""
    path = cache_file("lock", environ)
    with ExitStack() as stack:
        if path is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.touch()
                stack.enter_context(try_lock(path, _LOCK_SECONDS))
        yield
