"""Whether Parsl's run is over, when it cancels blocks."""

from __future__ import annotations

import threading

from parsl.dataflow.dflow import DataFlowKernelLoader
from parsl.errors import NoDataFlowKernelError
from parsl.providers.base import ExecutionProvider

__all__ = ["has_ended"]

_POLLER = "JobStatusPoller"  # how the thread's name starts (read in Parsl 2026.10.26)


def has_ended(provider: ExecutionProvider) -> bool:
    """Return whether a provider's blocks are cancelled because the run is over.

    Its running calls are then never repeated. Otherwise the strategy, or the program itself, scales
    in: calls that are lost in this way are retried.
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
