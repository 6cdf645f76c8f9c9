"""The one retry loop."""

from __future__ import annotations

import threading
import time

import pytest

from qrmi_workflows.client.failures import is_transient
from qrmi_workflows.errors import AuthenticationError, ResourceError
from qrmi_workflows.retry import retry

BUSY = ResourceError("busy", retryable=True)
REJECTED = ResourceError("rejected")
DENIED = AuthenticationError("denied")


class Vendor:
    """Fails with these errors in turn, then answers.

    Attributes:
        requests: How many requests were made.
    """

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.requests = 0

    def __call__(self) -> str:
        self.requests += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def test_a_request_that_succeeds_is_made_once():
    vendor = Vendor()

    assert retry(vendor, is_transient) == "answer"
    assert vendor.requests == 1


def test_a_request_is_repeated_until_it_succeeds():
    vendor = Vendor(BUSY, BUSY)

    assert retry(vendor, is_transient, pause=0.001) == "answer"
    assert vendor.requests == 3


def test_a_permanent_failure_is_raised_at_once():
    vendor = Vendor(BUSY, REJECTED)

    with pytest.raises(ResourceError, match="rejected"):
        retry(vendor, is_transient, pause=0.001)
    assert vendor.requests == 2


def test_with_no_time_for_retries_a_request_is_made_once():
    vendor = Vendor(BUSY)

    with pytest.raises(ResourceError, match="busy"):
        retry(vendor, is_transient, seconds=0.0)
    assert vendor.requests == 1


def test_when_the_time_is_over_the_last_error_is_raised(monkeypatch):
    """By a clock on which each request takes a second."""
    vendor = Vendor(*(ResourceError(f"busy {n}", retryable=True) for n in range(10_000)))
    monkeypatch.setattr(time, "monotonic", lambda: float(vendor.requests))

    with pytest.raises(ResourceError) as caught:
        retry(vendor, is_transient, seconds=4.5, pause=0.001, max_pause=0.01)
    assert vendor.requests == 5
    assert str(caught.value) == "busy 4"


def test_rejected_credentials_are_retried_only_a_few_times():
    """While an identity service is down, some clients call without a token and get a 401."""
    vendor = Vendor(*[DENIED] * 10)

    with pytest.raises(AuthenticationError):
        retry(vendor, is_transient, pause=0.001)
    assert vendor.requests == 4


def test_a_stop_ends_the_pause_and_the_last_error_is_raised():
    stop = threading.Event()
    vendor = Vendor(*[BUSY] * 10)

    with pytest.raises(ResourceError, match="busy"):
        retry(
            vendor,
            is_transient,
            stop=stop,
            pause=1000.0,
            max_pause=1000.0,
            seconds=10_000.0,
            before_pause=lambda *_: stop.set(),
        )
    assert vendor.requests <= 2


def test_before_pause_is_called_with_each_error():
    announced: list[BaseException] = []

    def announce(_seconds: float, error: BaseException) -> None:
        announced.append(error)

    retry(Vendor(BUSY, DENIED), is_transient, pause=0.001, before_pause=announce)

    assert announced == [BUSY, DENIED]
