"""Calls whose apps name no step: a retry takes over the step, another call does not."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, QPUExecutor, call_steps
from parsl_ext.call_steps import CallSteps


class Calls:
    """Starts calls, and keeps their steps and futures."""

    def __init__(self, steps: CallSteps) -> None:
        self._steps = steps
        self.started: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Future[Any]:
        def start(step: str) -> Future[Any]:
            self.started.append(step)
            return Future()

        return self._steps.start(sample, args, kwargs, start)


def sample(shots: int) -> int:
    return shots


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `CallSteps` reads of Parsl's kernel: an executor, and a call that is retried."""
    provider = LocalProvider(launcher=LeaseLauncher(qpu="q", inner=SimpleLauncher()))
    executor = QPUExecutor(provider=provider)
    archived: list[str] = []
    record = {"fail_count": 1, "executor": "qpu", "func_name": "sample"}
    kernel = SimpleNamespace(
        executors={"qpu": executor},
        config=SimpleNamespace(retries=2),
        tasks={7: record},
        archived=archived,
    )
    monkeypatch.setattr(call_steps.DataFlowKernelLoader, "dfk", lambda: kernel)
    monkeypatch.setattr(
        call_steps, "archive_step", kernel.__dict__.setdefault("archived", []).append
    )
    return kernel


@pytest.fixture
def call(kernel: SimpleNamespace) -> Calls:
    return Calls(CallSteps(kernel.executors["qpu"]))


def test_a_retry_takes_over_the_step_of_the_failed_attempt(kernel: Any, call: Calls) -> None:
    call(100, _parsl_monitoring_try_id=0).set_exception(OSError("the block was lost"))
    call(100, _parsl_monitoring_try_id=1).set_result(1)

    assert call.started[0] == call.started[1]
    assert kernel.archived == call.started[:1]


def test_other_calls_are_steps_of_their_own(call: Calls) -> None:
    call(100)
    call(100)  # at the same time
    call(200).set_exception(OSError("the block was lost"))
    call(100).set_result(1)
    call(100)

    assert len(set(call.started)) == 5


def test_a_new_call_after_one_that_failed_for_good_is_a_step_of_its_own(
    kernel: Any, call: Calls
) -> None:
    call(100).set_exception(ValueError("no good sample"))
    kernel.tasks.clear()
    call(100)

    assert len(set(call.started)) == 2


@pytest.mark.parametrize(("retries", "ending"), [(0, "without retries"), (2, "")])
def test_the_name_says_whether_a_lost_call_is_retried(
    kernel: Any, call: Calls, retries: int, ending: str
) -> None:
    kernel.config.retries = retries
    call(100)

    assert call.started[0].endswith(ending)
    assert call.started[0].endswith("without retries") == bool(ending)


def test_steps_of_failed_calls_are_archived_at_the_end(kernel: Any) -> None:
    steps = CallSteps(kernel.executors["qpu"])
    call = Calls(steps)
    call(100).set_exception(OSError("the block was lost"))

    steps.close()

    assert kernel.archived == call.started
