"""A Parsl executor whose workers share a QPU's lanes.

It extends `HighThroughputExecutor` (HTEX), partly in private methods. Comments say why, and in
which version of Parsl the overridden code was read. `tests/unit/parsl_ext/` has a test that fails
when a signature changes.
"""

from __future__ import annotations

import math
import shlex
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import typeguard
from parsl.data_provider.staging import Staging
from parsl.executors import HighThroughputExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.serialize import pack_apply_message
from parsl.serialize.errors import SerializationError

from parsl_ext.block import is_lease_app
from parsl_ext.block_errors import BlockErrors
from parsl_ext.call_limiter import CallLimiter
from parsl_ext.call_steps import CallSteps
from parsl_ext.executor_checks import (
    require_lease,
    require_positive,
    require_seconds,
    require_stage_lanes,
)
from parsl_ext.idle import IdleTimer
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.monitoring import measured
from parsl_ext.parsl_run import is_run_over
from parsl_ext.providers.base import QPUProvider
from parsl_ext.providers.choosing import ChoosingProvider
from parsl_ext.resource_spec import require_valid_spec
from parsl_ext.result_queue import PendingCalls, read_results
from qrmi_workflows.config.variables import QPU_LANES

__all__ = ["QPUExecutor"]

_CORES_PER_WORKER = 1e-9  # workers that wait for a QPU can share a core
_SPARE_WORKERS = 1  # prepare or finish calls while other workers hold the lanes


class QPUExecutor(HighThroughputExecutor):
    """Runs apps in blocks that hold a QPU, as many at once on the QPU as it has lanes.

    A `qpu_app` takes a lane for each of its tasks, while the vendor has the task. Any other app
    that uses the QPU holds a lane for the whole call. By default, all apps of this executor use the
    QPU. With `max_workers_per_node`, its blocks run classical apps as well. Then only a `qpu_app`
    that has a `lease`, or a call with `parsl_resource_specification={"qpu": 1}`, uses the QPU, and
    calls that wait for a lane leave workers to the other apps.

    In all other respects this is a `HighThroughputExecutor` with different defaults: the number of
    workers does not depend on the block's cores, calls are not prefetched, and a lost worker pool
    is noticed within 30 s. `start` asks the scheduler whether it offers the QPU, so that
    `parsl.load` fails if it does not.

    Parameters
    ----------
    label : str
        Label of this executor. Default is "qpu".
    provider : ExecutionProvider
        A `QPUSlurmProvider`, or another provider whose launcher is a `LeaseLauncher`.
    lanes : int | None
        The number of lanes of the QPU, or of each if there are several. If None, it is taken from
        the site policy.
    max_workers_per_node : int | None
        Number of workers, in blocks that also run classical apps; should exceed the number of
        lanes. If None, all apps use the QPU.
    address : str | None
        The address to listen on, at which the workers can reach this machine. If None, the loopback
        address for a `LocalProvider`; otherwise all addresses, with encryption.
    launch_cmd, worker_port, worker_port_range, interchange_port_range, storage_access, working_dir
        As in Parsl's `HighThroughputExecutor`.
    worker_debug, poll_period, address_probe_timeout, worker_logdir_root
        As in Parsl's `HighThroughputExecutor`.
    block_error_handler : bool or callable
        As in Parsl's `HighThroughputExecutor`. By default, a lost block is replaced, and its calls
        are retried as `retries` in `Config` allows (see `BlockErrors`).
    drain_period, encrypted
        As in Parsl's `HighThroughputExecutor`.
    heartbeat_period, heartbeat_threshold : int
        Seconds. Defaults are 10 and 30.
    max_idletime : float | None
        How many seconds the executor may be idle before it cancels its blocks, down to
        `min_blocks`. If None, only Parsl's strategy does so.

    Raises
    ------
    RequestError
        `lanes` or `max_workers_per_node` is less than 1, `lanes` is more than the provider's stage
        has, `max_idletime` is negative, or the provider's launcher holds no lease.
    """

    @typeguard.typechecked
    def __init__(
        self,
        label: str = "qpu",
        provider: ExecutionProvider | None = None,
        lanes: int | None = None,
        max_workers_per_node: int | None = None,
        address: str | None = None,
        launch_cmd: str | None = None,
        worker_port: int | None = None,
        worker_port_range: tuple[int, int] | None = (54000, 55000),
        interchange_port_range: tuple[int, int] | None = (55000, 56000),
        storage_access: list[Staging] | None = None,
        working_dir: str | None = None,
        worker_debug: bool = False,
        heartbeat_threshold: int = 30,
        heartbeat_period: int = 10,
        drain_period: int | None = None,
        poll_period: int = 10,
        address_probe_timeout: int | None = None,
        worker_logdir_root: str | None = None,
        block_error_handler: (
            bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None]
        ) = True,
        encrypted: bool = True,
        max_idletime: float | None = None,
    ) -> None:
        require_positive(lanes=lanes, max_workers_per_node=max_workers_per_node)
        require_seconds(max_idletime=max_idletime)
        require_lease(LocalProvider() if provider is None else provider)  # Parsl's default
        require_stage_lanes(provider, lanes)
        policies = provider.qpu_policies if isinstance(provider, QPUProvider) else []
        # A block with several QPUs looks up the lanes of each by itself, and one of a stage those
        # that the stage has.
        self._shares_lanes = isinstance(provider, QPUProvider) and provider.stage is not None
        looks_up = lanes is None and (
            len(policies) > 1 or self._shares_lanes or self._is_chosen(provider)
        )
        if lanes is None:
            lanes = sum(policy.lanes for policy in policies) or 1
        self._lanes_in_block = "" if looks_up else str(lanes)
        if address is None and isinstance(provider, LocalProvider):
            address = "127.0.0.1"
        super().__init__(
            label=label,
            provider=provider,
            launch_cmd=launch_cmd,
            address=address,
            worker_port=worker_port,
            worker_port_range=worker_port_range,
            interchange_port_range=interchange_port_range,
            storage_access=storage_access,
            working_dir=working_dir,
            worker_debug=worker_debug,
            cores_per_worker=_CORES_PER_WORKER,
            max_workers_per_node=max_workers_per_node or lanes + _SPARE_WORKERS,
            prefetch_capacity=0,
            heartbeat_threshold=heartbeat_threshold,
            heartbeat_period=heartbeat_period,
            drain_period=drain_period,
            poll_period=poll_period,
            address_probe_timeout=address_probe_timeout,
            worker_logdir_root=worker_logdir_root,
            block_error_handler=(
                BlockErrors() if block_error_handler is True else block_error_handler
            ),
            encrypted=encrypted,
        )
        # `BlockProviderExecutor._tasks` is a dict (Parsl 2026.10.26); see `PendingCalls`.
        self._tasks = PendingCalls()
        self.lanes = lanes
        self._runs_classical_apps = max_workers_per_node is not None
        self.max_idletime = max_idletime
        self._idle = IdleTimer(max_idletime)
        self._held_blocks: set[str] = set()  # that were to be cancelled, and may still exist
        self._qpu_calls = CallLimiter(self._qpu_call_limit)
        self._steps = CallSteps(self)
        self._send_lock = threading.Lock()
        if isinstance(provider, QPUProvider):
            provider.ends_moved_blocks = False  # see `_hold_moved_blocks`

    def start(self) -> None:
        """Start the executor.

        Raises
        ------
        UnknownQPUError
            The scheduler does not offer the QPU.
        SchedulerError
            The scheduler does not answer.
        """
        if isinstance(self.provider, QPUProvider):
            self.provider.check()
        super().start()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Cancel the remaining blocks, which Parsl does not do after block errors; shut down."""
        if isinstance(self.provider, QPUProvider):
            self.provider.cancel([
                job_id
                for job_id, job in self.provider.resources.items()
                if not job["status"].terminal
            ])  # fmt: skip
        super().shutdown(timeout)
        self._steps.close()

    def validate_resource_spec(self, resource_specification: Mapping[str, Any]) -> None:
        """Refuse a specification with keys other than `qpu` (0 or 1) and `priority` (a number).

        Raises
        ------
        InvalidResourceSpecification
            It has another key, or a value that is not allowed.
        """
        # HTEX (read in Parsl 2026.10.26) allows only `priority`, and calls this in `submit`.
        require_valid_spec(resource_specification)

    def submit(
        self,
        func: Callable[..., Any],
        resource_specification: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Future[Any]:
        """Run a function in a block, in a lane if it uses the QPU and is not a lease app.

        Raises
        ------
        InvalidResourceSpecification
            See `validate_resource_spec`.
        SerializationError
            The function or its arguments cannot be sent to a worker.
        """
        self.validate_resource_spec(resource_specification)
        specification = dict(resource_specification or {})
        is_lease_call = is_lease_app(func)
        default = is_lease_call or not self._runs_classical_apps
        uses_qpu = specification.pop("qpu", int(default))
        # From here on as in HTEX.submit (read in Parsl 2026.10.26), which cannot add to the
        # context. The worker calls `task_executor` instead of its own `execute_task`.
        try:
            call = measured(func, kwargs, self)
            buffer = pack_apply_message(call, args, kwargs, buffer_threshold=1 << 20)
        except TypeError as error:
            raise SerializationError(func.__name__) from error
        context: dict[str, Any] = {"resource_spec": specification} if specification else {}
        if not uses_qpu:
            return self.submit_payload(context, buffer)
        if is_lease_call:
            return self._submit_qpu_call(context, buffer)
        return self._steps.start(
            func,
            args,
            kwargs,
            lambda step: self._submit_qpu_call(context | self._in_lane(step), buffer),
        )

    def _in_lane(self, step: str) -> dict[str, Any]:
        qpu = None if self._is_chosen(self.provider) else getattr(self.provider, "qpu", None)
        function = "parsl_ext.block.execute_in_lane"
        return {"task_executor": {"f": function, "k": {"qpu": qpu, "step": step}}}

    @staticmethod
    def _is_chosen(provider: object) -> bool:
        return isinstance(provider, ChoosingProvider) and provider.candidates is not None

    def _submit_qpu_call(self, context: dict[str, Any], buffer: bytes) -> Future[Any]:
        if not self._runs_classical_apps:
            return self.submit_payload(context, buffer)
        # Parsl's interchange (2026.10.26) also runs calls without a priority last.
        return self._qpu_calls.submit(
            lambda: self.submit_payload(context, buffer),
            priority=context.get("resource_spec", {}).get("priority", math.inf),
        )

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> Future[Any]:
        """Send a call to the workers, as `HighThroughputExecutor` does, from any thread."""
        # HTEX counts calls and writes to a ZeroMQ socket without a lock (read in Parsl 2026.10.26).
        # Here the thread that reads results submits too: it starts the calls of `CallLimiter`.
        with self._send_lock:
            future: Future[Any] = super().submit_payload(context, buffer)
            return future

    def poll_facade(self) -> None:
        """Update the blocks' states, and cancel those that have been idle for too long."""
        # Parsl's poller calls this before its strategy scales (read in Parsl 2026.10.26).
        super().poll_facade()
        self._hold_moved_blocks()
        self._cancel_held_blocks()
        active = [block for block in list(self._status.values()) if not block.terminal]
        surplus = len(active) - self.provider.min_blocks
        # A call that the interchange gave to a block meanwhile would be lost with it. Sent after
        # the hold, it waits for another block.
        with self._send_lock:
            if self._idle.is_over(is_busy=self.outstanding() > 0 or surplus < 1):
                self.scale_in_facade(surplus)

    def _hold_moved_blocks(self) -> None:
        """Give no more calls to blocks whose QPU has gone; they end after those that they have.

        A call that is lost with its block costs a retry, and one that has failed because it goes on
        with the next QPU costs none.
        """
        jobs = self.provider.moved_jobs() if isinstance(self.provider, QPUProvider) else ()
        blocks = {self.job_ids_to_block.get(job_id) for job_id in jobs}
        running = {b for b in blocks if b in self._status and not self._status[b].terminal}
        if running - self._held_blocks:  # without workers yet, it ends by itself
            running &= {manager["block_id"] for manager in self.connected_managers()}
            for block in running - self._held_blocks:
                self._hold_block(block)

    def _cancel_held_blocks(self) -> None:
        """Cancel the blocks again that the scheduler did not cancel: they get no more calls."""
        # HTEX (read in Parsl 2026.10.26) holds a block's workers before it cancels the block, and
        # never releases them. If the cancellation fails, the block counts as running, so no other
        # is submitted, and calls wait forever.
        left = {b for b in self._held_blocks if b in self._status and not self._status[b].terminal}
        if left:
            inactive = {m["block_id"] for m in self.connected_managers() if not m["active"]}
            self._held_blocks = left & inactive  # without workers yet, it was not held
            self.scale_in_facade(len(self._held_blocks), max_idletime=math.inf)
        else:
            self._held_blocks.clear()

    def _hold_block(self, block_id: str) -> None:
        self._held_blocks.add(block_id)
        super()._hold_block(block_id)

    def outstanding(self) -> int:
        """Return how many calls have not finished, including those that wait for a lane."""
        return int(super().outstanding()) + self._qpu_calls.queued

    def monitor_resources(self) -> bool:
        """Return False: Parsl's own helper processes do not measure calls (see `monitoring`)."""
        return False

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Cancel blocks; with `max_idletime`, only those that have been idle for so many seconds.

        A block that is starting is not idle.

        Returns
        -------
        list of str
            The ids of the blocks that were cancelled.
        """
        # With `max_idletime`, which Parsl's strategy "htex_auto_scale" passes, HTEX (read in Parsl
        # 2026.10.26) also cancels each block whose workers have not registered yet, even if it is
        # asked for no block at all. The strategy then submits another one, and so on.
        launcher = getattr(self.provider, "launcher", None)
        if isinstance(launcher, LeaseLauncher) and is_run_over(self.provider):
            launcher.give_up()  # a `QPUProvider` does the same for its own blocks
        if max_idletime is None:
            return list(super().scale_in(blocks))
        idle = self._idle_blocks(max_idletime)[: max(0, blocks)]
        for block in idle:
            self._hold_block(block)
        job_ids = [self.blocks_to_job_id[block] for block in idle if block in self.blocks_to_job_id]
        cancelled = self._filter_scale_in_ids(job_ids, self.provider.cancel(job_ids))
        return [self.job_ids_to_block[job_id] for job_id in cancelled]

    def _idle_blocks(self, seconds: float) -> list[str]:
        """Return the blocks all of whose workers have been idle for so long, the longest first.

        Workers that are held will be idle for ever.
        """
        idle: dict[str, float] = {}
        for manager in self.connected_managers():
            block = manager["block_id"]
            duration = math.inf if block in self._held_blocks else manager["idle_duration"]
            duration = -1.0 if manager["tasks"] else duration
            idle[block] = min(duration, idle.get(block, duration))
        return sorted(
            (b for b in idle if idle[b] > seconds or idle[b] == math.inf), key=lambda b: -idle[b]
        )

    def _get_launch_command(self, block_id: str) -> str:
        # HTEX (read in Parsl 2026.10.26) formats the command a second time here, after inserting
        # paths without quoting them: a run folder with braces or spaces would not work.
        command = str(self.launch_cmd).replace("{block_id}", block_id)
        for option, path in (("--cert_dir ", self.cert_dir), ("--logdir=", self.worker_logdir)):
            command = command.replace(f"{option}{path} ", f"{option}{shlex.quote(str(path))} ")
        return f"env {QPU_LANES}={self._lanes_in_block} {command}"

    def _start_local_interchange_process(self) -> None:
        # A terminal sends Ctrl-C to the interchange as well. If that ends it, HTEX waits forever
        # for the answer to its next command (read in Parsl 2026.10.26,
        # https://github.com/Parsl/parsl/issues/3374). A child process inherits the signal mask, so
        # SIGINT does not reach the interchange; HTEX ends it with SIGTERM.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super()._start_local_interchange_process()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _result_queue_worker(self) -> None:
        # Runs in the one thread that reads results (Parsl 2026.10.26); see `read_results`.
        read_results(super()._result_queue_worker, self._tasks)

    def _qpu_call_limit(self) -> int:
        """Return how many QPU calls may be with the workers; one worker per block is kept free."""
        # Parsl's poller thread replaces and changes `_status` (read in Parsl 2026.10.26): copy it.
        running = sum(status.state is JobState.RUNNING for status in list(self._status.values()))
        workers, blocks = int(self.max_workers_per_node), max(1, running)
        if self._shares_lanes:
            return max(1, min(self.lanes + blocks * _SPARE_WORKERS, blocks * (workers - 1)))
        return blocks * max(1, min(self.lanes + _SPARE_WORKERS, workers - 1))
