"""Why Parsl cancels blocks: because its run is over, or because they are idle."""

from __future__ import annotations

import threading

from parsl.dataflow.dflow import DataFlowKernelLoader
from parsl.errors import NoDataFlowKernelError
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.providers.base import ExecutionProvider

__all__ = ["are_calls_waiting", "is_run_over"]

_POLLER = "JobStatusPoller"  # how the thread's name starts (read in Parsl 2026.10.26)


def is_run_over(provider: ExecutionProvider) -> bool:
    """Return whether the run that a provider's blocks belong to is over.

    Calls in blocks that are cancelled then are never repeated. Before that, blocks are cancelled by
    the strategy or the program itself, and their calls are retried.
    """
    if threading.current_thread().name.startswith(_POLLER):
        return False
    try:
        kernel = DataFlowKernelLoader.dfk()
    except NoDataFlowKernelError:
        return True
    is_loaded = any(
        getattr(executor, "provider", None) is provider for executor in kernel.executors.values()
    )
    # Nothing leads from a provider to a kernel other than the loaded one. Of the two, cancelling
    # its tasks is the better guess: `cleanup` is the usual reason for a cancellation.
    return bool(kernel.cleanup_called) or not is_loaded


def are_calls_waiting(provider: ExecutionProvider) -> bool:
    """Return whether a strategy is scaling in a provider's blocks although calls wait for them."""
    if not threading.current_thread().name.startswith(_POLLER):
        return False
    try:
        kernel = DataFlowKernelLoader.dfk()
    except NoDataFlowKernelError:
        return False
    return any(
        executor.outstanding() > 0
        for executor in kernel.executors.values()
        if isinstance(executor, BlockProviderExecutor) and executor.provider is provider
    )
