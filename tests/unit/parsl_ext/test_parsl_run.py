"""Whether Parsl cancels a provider's blocks because its run is over."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import pytest
from parsl.dataflow.dflow import DataFlowKernel, DataFlowKernelLoader
from parsl.jobs.job_status_poller import JobStatusPoller
from parsl.providers import LocalProvider

from parsl_ext.parsl_run import is_run_over

PROVIDER = LocalProvider()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The loaded kernel."""
    executors = {"qpu": SimpleNamespace(provider=PROVIDER), "threads": SimpleNamespace()}
    kernel = SimpleNamespace(executors=executors, cleanup_called=False)
    monkeypatch.setattr(DataFlowKernelLoader, "_dfk", kernel)
    return kernel


def test_a_run_goes_on_until_its_kernel_is_cleaned_up(kernel):
    assert not is_run_over(PROVIDER)

    kernel.cleanup_called = True

    assert is_run_over(PROVIDER)


def test_a_run_whose_kernel_is_not_known_has_ended_unless_parsls_strategy_scales_in():
    found: list[bool] = []
    poller = JobStatusPoller(strategy="none", max_idletime=1, strategy_period=1)
    poller.close()
    name = poller._thread.name

    thread = threading.Thread(target=lambda: found.append(is_run_over(PROVIDER)), name=name)
    thread.start()
    thread.join()

    assert found == [False]
    assert is_run_over(PROVIDER)


def test_the_kernel_has_the_attributes_that_are_used():
    for method, name in [("cleanup", "cleanup_called"), ("add_executors", "executors")]:
        assert name in inspect.unwrap(getattr(DataFlowKernel, method)).__code__.co_names
