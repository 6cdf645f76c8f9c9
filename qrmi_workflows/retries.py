"""Requests that are made again: which, how often, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_base

from qrmi_workflows.errors import AuthenticationError, QPUError, ResourceError, SessionEndedError

__all__ = ["RETRY_SECONDS", "passing", "refused_for_now", "repeated"]

RETRY_SECONDS = 120.0
"""How long a request that is safe to repeat is repeated while the vendor fails."""

_CREDENTIAL_ATTEMPTS = 4


def repeated(
    request: Callable[[], Any],
    again: Callable[[BaseException], bool],
    *,
    stop: threading.Event,
    seconds: float = RETRY_SECONDS,
) -> Any:
    """Make a request, again and again with growing random pauses, until its answer is final.

    Args:
        request: What is asked.
        again: Tells whether it may be asked again after an error.
        stop: Set to end this after the request that is under way.
        seconds: For how long it is asked again.

    Raises:
        QPUError: The last answer.
    """
    return Retrying(
        retry=retry_if_exception(again),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        stop=_CredentialsWrong() | stop_after_delay(seconds) | stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        retry_error_callback=_last_error,
    )(request)


def passing(error: BaseException) -> bool:
    """Return whether a question that changes nothing may be answered next time."""
    # While an identity service fails, clients call without a token and are refused for that.
    return isinstance(error, AuthenticationError) or (
        isinstance(error, QPUError) and error.retryable
    )


def refused_for_now(error: BaseException) -> bool:
    """Return whether a submission was certainly not carried out, and may be next time."""
    if isinstance(error, SessionEndedError):
        return False  # the same session will not open again
    if isinstance(error, AuthenticationError):
        return True
    return isinstance(error, ResourceError) and error.retryable and error.refused


class _CredentialsWrong(stop_base):
    """Stops when credentials were refused so often that no failing identity service explains it."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        error = retry_state.outcome and retry_state.outcome.exception()
        refused = isinstance(error, AuthenticationError)
        return refused and retry_state.attempt_number >= _CREDENTIAL_ATTEMPTS


def _last_error(state: RetryCallState) -> Any:
    return state.outcome and state.outcome.result()
