"""The only retry loop: how often a request is repeated, and for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from qrmi_workflows.errors import AuthenticationError

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["RETRY_SECONDS", "retry"]

RETRY_SECONDS = 120.0
"""How long a request that is safe to repeat is retried while the vendor keeps failing."""

_CREDENTIAL_ATTEMPTS = 4
_T = TypeVar("_T")


def retry(
    request: Callable[[], _T],
    is_retryable: Callable[[BaseException], bool],
    *,
    stop: threading.Event | None = None,
    seconds: float = RETRY_SECONDS,
    pause: float = 0.2,
    max_pause: float = 10.0,
    before_pause: Callable[[float, BaseException], None] | None = None,
) -> _T:
    """Repeat a request until it succeeds or fails for good, with growing random pauses.

    Args:
        request: Makes the request.
        is_retryable: Tells whether to retry after an error.
        stop: Once this event is set, no further attempt is made.
        seconds: How long to retry; only the first attempt may start later than this.
        pause: The scale of the first pause, in seconds; it doubles with each attempt.
        max_pause: The longest pause, in seconds.
        before_pause: Called before each pause with the seconds since the start and the error.

    Raises:
        QPUError: The error of the last attempt.
    """
    started = time.monotonic()
    try:
        return request()
    except BaseException as error:
        if not is_retryable(error):
            raise
        failures = [error]
    # Imported only now: most requests succeed, and tenacity would delay each step's start.
    from tenacity import (
        Retrying,
        retry_if_exception,
        stop_before_delay,
        stop_when_event_set,
        wait_random_exponential,
    )
    from tenacity.nap import sleep_using_event

    stop = threading.Event() if stop is None else stop
    used = time.monotonic() - started
    attempts = 0

    def attempt() -> _T:
        nonlocal attempts
        attempts += 1
        if failures:  # the first attempt has been made
            raise failures.pop()
        return request()

    def is_worth_repeating(error: BaseException) -> bool:
        # Too often for a brief outage to be the reason why credentials were refused?
        is_wrong = isinstance(error, AuthenticationError) and attempts >= _CREDENTIAL_ATTEMPTS
        return not is_wrong and is_retryable(error)

    def tell(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if before_pause is not None and isinstance(error, BaseException):
            before_pause(used + (state.seconds_since_start or 0.0), error)

    return Retrying(
        retry=retry_if_exception(is_worth_repeating),
        wait=wait_random_exponential(multiplier=pause, max=max_pause),
        stop=stop_before_delay(seconds - used) | stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=tell,
        reraise=True,
    )(attempt)
