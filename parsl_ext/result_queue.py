"""Keep Parsl's result queue going when the result of one call cannot be unpickled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parsl.serialize.errors import DeserializationError

__all__ = ["PendingCalls", "read_results"]


class PendingCalls(dict[object, Future[Any]]):
    """The futures of unfinished calls, by Parsl's task id.

    It replaces `BlockProviderExecutor._tasks`. Parsl's reader removes a call from that table and
    then unpickles its result, so if unpickling fails, `last_removed` is the future of that call.

    Attributes:
        last_removed: The future of the call that was removed last.
    """

    last_removed: Future[Any] | None = None

    def pop(self, key: object, *default: Any) -> Any:
        """Remove and return the future of a call whose result has arrived."""
        self.last_removed = super().pop(key, *default)
        return self.last_removed


def read_results(read: Callable[[], None], pending: PendingCalls) -> None:
    """Run Parsl's reader of results; restart it if a result cannot be unpickled.

    Parsl (read in 2026.10.26) unpickles all results in one thread, outside any `try`. An error
    there ends the thread, and neither that call nor any other ever completes. Here only that call
    fails.
    """
    while True:
        try:
            return read()
        except Exception as error:
            call = pending.last_removed
            if call is None or call.done():  # not an error of unpickling
                raise
            failure = DeserializationError(
                f"the value or exception from the app cannot be unpickled: {error!r}. Return plain "
                "data, and raise only exceptions that this process can import."
            )
            failure.__cause__ = error
            call.set_exception(failure)
