"""Progress of many tasks: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["show_progress"]

logger = logging.getLogger(__name__)

_LINE_SECONDS = 10.0


@contextmanager
def show_progress(total: int, label: str) -> Iterator[Callable[[], None]]:
    """Show how many of `total` tasks have ended.

    On a terminal this is a bar on standard error; elsewhere a log line (INFO) at most every ten
    seconds, and one at the end.

    Yields:
        A function to call, from any thread, whenever a task has ended.
    """
    if total > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _LogLines(total, label)


class _LogLines:
    """Counts tasks, and logs the count now and then."""

    def __init__(self, total: int, label: str) -> None:
        self._total, self._label = total, label
        self._ended, self._last_line = 0, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._ended += 1
            now = time.monotonic()
            if now - self._last_line < _LINE_SECONDS and self._ended < self._total:
                return
            self._last_line = now
            logger.info("%s: %d of %d tasks", self._label, self._ended, self._total)
