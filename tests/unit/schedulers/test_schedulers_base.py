"""The interface that every scheduler implements, and the data it exchanges."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import JobState, QPURequest, Scheduler
from qrmi_workflows.schedulers.slurm import Slurm


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "1"])
def test_a_request_must_be_for_a_positive_integer(count):
    with pytest.raises(RequestError, match=r"must be a positive integer\. Ask for qpu=1"):
        QPURequest(qpu="a", count=count)


@pytest.mark.parametrize("state", JobState)
def test_a_job_that_has_ended_has_no_processes(state):
    assert not (state.is_final and state.may_have_processes)


def test_a_job_in_doubt_may_have_processes():
    """A lease must not be released, or a task submitted again, under a running job."""
    may = {state for state in JobState if state.may_have_processes}

    assert may == {JobState.RUNNING, JobState.SUSPENDED, JobState.UNKNOWN}


def parameters(function: Callable[..., object]) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def test_slurm_has_every_hook_with_its_parameters():
    hooks = {
        name: hook
        for name, hook in inspect.getmembers(Scheduler, inspect.isfunction)
        if not name.startswith("_")
    }

    assert "live_jobs" in hooks
    for name, hook in hooks.items():
        assert parameters(getattr(Slurm, name)) == parameters(hook), name
