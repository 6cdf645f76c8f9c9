"""The workers' answers: one that cannot be read fails its own call, and not all that follow."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parsl.serialize.errors import DeserializationError

__all__ = ["Outstanding", "read_answers"]


class Outstanding(dict[object, Future[Any]]):
    """Calls that are not answered, by their ids; `latest` is the one whose answer is being read."""

    latest: Future[Any] | None = None

    def pop(self, key: object, *default: Any) -> Any:
        """Take out the call whose answer has come."""
        self.latest = super().pop(key, *default)
        return self.latest


def read_answers(read: Callable[[], None], outstanding: Outstanding) -> None:
    """Read answers until there are no more.

    Parsl unpickles what an app returned or raised in the one thread that reads all answers, which
    an error ended there: no later call was answered.
    """
    while True:
        try:
            return read()
        except Exception as error:
            call = outstanding.latest
            if call is None or call.done():
                raise
            reason = (
                f"what the app returned or raised cannot be unpickled here: {error!r}. "
                "Return plain data, and raise exceptions that this side can import."
            )
            failure = DeserializationError(reason)
            failure.__cause__ = error
            call.set_exception(failure)
