"""Parsl's monitoring of calls in a block, without its helper processes.

Parsl would measure a call from a process that it forks in the worker (`parsl/monitoring/remote.py`,
read in 2026.10.26). A fork is not safe in a worker, where QRMI's threads are running, so a thread
of the worker measures it. The rows of Parsl's table `resource` are the same.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import psutil
from parsl.dataflow.dflow import DataFlowKernelLoader
from parsl.errors import NoDataFlowKernelError
from parsl.executors.base import ParslExecutor
from parsl.monitoring.message_type import MessageType
from parsl.monitoring.radios.base import RadioConfig

__all__ = ["measured"]

logger = logging.getLogger(__name__)

_TASK, _TRY = "_parsl_monitoring_task_id", "_parsl_monitoring_try_id"


def measured(
    call: Callable[..., Any], kwargs: Mapping[str, Any], executor: ParslExecutor
) -> Callable[..., Any]:
    """Return a call that measures itself, if Parsl monitors it and measures resources.

    Parameters
    ----------
    call : callable
        The call, as Parsl has wrapped it.
    kwargs : mapping
        Its arguments, to which Parsl's monitoring has added its own.
    executor : ParslExecutor
        The executor that it runs on.
    """
    radio = executor.remote_monitoring_radio
    if _TASK not in kwargs or radio is None or (interval := _interval(executor)) <= 0:
        return call
    about = {"run_id": executor.run_id, "task_id": kwargs[_TASK], "try_id": kwargs[_TRY]}
    return _Measured(call, radio, {**about, "resource_monitoring_interval": interval})


def _interval(executor: ParslExecutor) -> float:
    """Return the seconds between two measurements; zero if there are to be none."""
    try:
        kernel = DataFlowKernelLoader.dfk()
    except NoDataFlowKernelError:  # a kernel that is not the loaded one: its settings are not known
        return 0.0
    hub = kernel.monitoring if kernel.executors.get(executor.label) is executor else None
    return 0.0 if hub is None else float(hub.resource_monitoring_interval)


class _Measured:
    """A call that a thread measures while it runs; an object, which is pickled by reference."""

    def __init__(
        self, call: Callable[..., Any], radio: RadioConfig, about: Mapping[str, Any]
    ) -> None:
        functools.update_wrapper(self, call)
        self._call = call
        self._radio = radio
        self._about = about

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        end = threading.Event()
        thread = threading.Thread(target=self._measure, args=(end,), name="measure", daemon=True)
        thread.start()
        try:
            return self._call(*args, **kwargs)
        finally:
            end.set()
            thread.join(timeout=10)

    def _measure(self, end: threading.Event) -> None:
        try:
            sender, process = self._radio.create_sender(), psutil.Process()
            is_over = False
            while not is_over:  # at the start, regularly, and at the end
                sender.send((MessageType.RESOURCE_INFO, {**self._about, **_usage(process)}))
                is_over = end.wait(self._about["resource_monitoring_interval"])
            sender.send((MessageType.RESOURCE_INFO, {**self._about, **_usage(process)}))
        except Exception:  # measuring must not fail the call
            logger.warning("the resources of a call were not recorded", exc_info=True)


def _usage(process: psutil.Process) -> dict[str, Any]:
    """Measure a worker and its children, in the columns of Parsl's table `resource`."""
    children = process.children(recursive=True)
    usage: dict[str, Any] = {
        "timestamp": datetime.now(),
        "hostname": os.uname().nodename,
        "psutil_process_pid": process.pid,
        "psutil_process_status": process.status(),
        "psutil_process_children_count": len(children),
        "psutil_cpu_num": str(process.cpu_num()),
    }
    for each in (process, *children):
        try:
            measured = _usage_of(each)
        except psutil.Error:  # the child has ended
            continue
        for name, value in measured.items():
            usage[f"psutil_process_{name}"] = usage.get(f"psutil_process_{name}", 0) + value
    return usage


def _usage_of(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        memory, times = process.memory_info(), process.cpu_times()
        switches, io = process.num_ctx_switches(), process.io_counters()
        return {
            "memory_percent": process.memory_percent(),
            "memory_virtual": memory.vms,
            "memory_resident": memory.rss,
            "time_user": times.user + times.children_user,
            "time_system": times.system + times.children_system,
            "disk_read": io.read_chars,
            "disk_write": io.write_chars,
            "num_ctx_switches_voluntary": switches.voluntary,
            "num_ctx_switches_involuntary": switches.involuntary,
        }
