"""The retry cost of failed calls."""

from __future__ import annotations

import math

import pytest
from parsl.app.errors import AppTimeout, BashExitFailure
from parsl.executors.errors import InvalidResourceSpecification
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from parsl.serialize.errors import DeserializationError

from parsl_ext import qpu_retry_handler
from qrmi_workflows import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.LeaseError("another holds it", "q", retryable=True),
        errors.DeadlineError("no answer", "q", "task_status", None, True),
        WorkerLost(1, "node"),
        ManagerLost(b"1", "node"),
        ConnectionResetError(),
        BashExitFailure("app", 1),
        BashExitFailure("app", -15),
    ],
)
def test_an_error_that_a_retry_may_cure_costs_one_retry(error: Exception) -> None:
    assert qpu_retry_handler(error, {}) == 1


@pytest.mark.parametrize(
    "error",
    [
        errors.PayloadError("no shots"),
        errors.UnknownQPUError("a", ["b"], "here"),
        errors.TaskFailedError("the vendor says so", "q", "t"),
        errors.AmbiguousTaskError("nobody knows", "q", "t"),
        InvalidResourceSpecification({"gpu"}),
        DeserializationError("no such module"),
        ZeroDivisionError(),
        FileNotFoundError(),
        AppTimeout(),
        BashExitFailure("app", 127),
    ],
)
def test_an_error_that_would_occur_again_costs_all_retries(error: Exception) -> None:
    assert qpu_retry_handler(error, {}) == math.inf
