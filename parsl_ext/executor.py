"""A Parsl executor whose workers share a QPU's lanes."""

from __future__ import annotations

import logging
import shlex
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import typeguard
from parsl.data_provider.staging import Staging
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import InvalidResourceSpecification
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.serialize import pack_apply_message
from parsl.serialize.errors import SerializationError

from parsl_ext.answers import Outstanding, read_answers
from parsl_ext.apps import takes_lanes
from parsl_ext.launcher import ALIVE_FILE
from parsl_ext.providers.base import QPUProvider
from parsl_ext.retries import replace_lost_blocks
from parsl_ext.window import Window
from qrmi_workflows.config.variables import QPU_LANES

__all__ = ["QPUExecutor"]

logger = logging.getLogger(__name__)

_TOUCH_SECONDS = 5.0
_NO_SHARE_OF_A_CORE = 1e-9  # a worker that waits for a QPU needs no core of its own
_OVERLAP = 1  # workers that prepare or finish a call while others have the lanes


class QPUExecutor(HighThroughputExecutor):
    """Runs apps in blocks that hold a QPU, as many of them on it at once as it has lanes.

    A `qpu_app` takes a lane for each of its tasks, for as long as the vendor has the task. Another
    app that uses the QPU holds a lane for its whole call. By default all apps of this executor use
    the QPU. With `max_workers_per_node` classical ones run in its blocks too: then those use the
    QPU that are a `qpu_app`, or are called with `parsl_resource_specification={"qpu": 1}`, and
    what waits for a lane leaves workers to the others.

    Otherwise it is a `HighThroughputExecutor` with other defaults: workers whatever the block's
    cores, no prefetching, and losses noticed within 30 s. When it starts it asks the scheduler
    whether the QPU is offered, so that `parsl.load` raises, and not each task.

    Parameters
    ----------
    label : str
        Label of this executor. Default is "qpu".
    provider : ExecutionProvider
        A `QPUSlurmProvider`, or another provider whose launcher is a `LeaseLauncher`.
    lanes : int | None
        How many lanes the QPU has; as the site policy says when it is None.
    max_workers_per_node : int | None
        Workers in a block where classical apps run too, best some more than there are lanes.
    address : str | None
        The submit side's address as the workers reach it, to listen on. When it is None: loopback
        for a `LocalProvider`, and all of its addresses, encrypted, for others.
    launch_cmd, worker_port, worker_port_range, interchange_port_range, storage_access, working_dir
        As in Parsl's `HighThroughputExecutor`.
    worker_debug, poll_period, address_probe_timeout, worker_logdir_root
        As in Parsl's `HighThroughputExecutor`.
    block_error_handler : bool or callable
        As in Parsl's `HighThroughputExecutor`. By default a block that is lost after it has worked
        is replaced, and its calls are repeated as `Config`'s `retries` says.
    drain_period, encrypted
        As in Parsl's `HighThroughputExecutor`.
    heartbeat_period, heartbeat_threshold : int
        Seconds. Defaults are 10 and 30.
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
    ) -> None:
        if lanes is None:
            lanes = provider.qpu_policy.lanes if isinstance(provider, QPUProvider) else 1
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
            cores_per_worker=_NO_SHARE_OF_A_CORE,
            max_workers_per_node=max_workers_per_node or lanes + _OVERLAP,
            prefetch_capacity=0,
            heartbeat_threshold=heartbeat_threshold,
            heartbeat_period=heartbeat_period,
            drain_period=drain_period,
            poll_period=poll_period,
            address_probe_timeout=address_probe_timeout,
            worker_logdir_root=worker_logdir_root,
            block_error_handler=(
                replace_lost_blocks if block_error_handler is True else block_error_handler
            ),
            encrypted=encrypted,
        )
        self._tasks = Outstanding()
        self.lanes = lanes
        self._mixed = max_workers_per_node is not None
        self._window = Window(self._count_starts)
        self._sending = threading.Lock()
        self._ended = threading.Event()

    def start(self) -> None:
        """Start; refuse a QPU that the scheduler does not offer.

        Raises
        ------
        UnknownQPUError
            The scheduler does not offer the QPU.
        SchedulerError
            The scheduler does not answer.
        """
        if isinstance(self.provider, QPUProvider):
            self.provider.check()
        self._say_alive()
        super().start()

    def validate_resource_spec(self, resource_specification: Mapping[str, Any]) -> None:
        """Refuse a specification with other keys than `qpu` (0 or 1) and `priority`.

        Raises
        ------
        InvalidResourceSpecification
            It has another key, another number of QPUs, or a priority that is no number.
        """
        if not isinstance(resource_specification or {}, Mapping):
            raise InvalidResourceSpecification(
                set(), f"{resource_specification!r}; allowed is a dict of priority, qpu."
            )
        specification = dict(resource_specification or {})
        qpu = specification.pop("qpu", 1)
        if type(qpu) is not int or qpu not in (0, 1):
            raise InvalidResourceSpecification(
                {"qpu"}, f"qpu = {qpu!r}; allowed is 1, for a call that uses the QPU, or 0."
            )
        if unknown := sorted(set(specification) - {"priority"}):
            raise InvalidResourceSpecification(
                set(unknown), f"Unknown key {unknown[0]!r}; allowed: priority, qpu."
            )
        priority = specification.get("priority", 0)
        if not isinstance(priority, int | float):  # it would end Parsl's interchange
            raise InvalidResourceSpecification(
                {"priority"}, f"priority = {priority!r}; allowed is a number."
            )

    def submit(
        self,
        func: Callable[..., Any],
        resource_specification: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Future[Any]:
        """Run a function in a block; within a lane if it uses the QPU and takes none itself.

        Raises
        ------
        InvalidResourceSpecification
            See `validate_resource_spec`.
        SerializationError
            The function cannot be sent to a worker.
        """
        self.validate_resource_spec(resource_specification)
        specification = dict(resource_specification or {})
        uses_qpu = specification.pop("qpu", int(takes_lanes(func) or not self._mixed))
        try:
            buffer = pack_apply_message(func, args, kwargs, buffer_threshold=1 << 20)
        except TypeError as error:
            raise SerializationError(func.__name__) from error
        context: dict[str, Any] = {"resource_spec": specification} if specification else {}
        if uses_qpu and not takes_lanes(func):
            context["task_executor"] = {
                "f": "parsl_ext.apps.execute_in_lane",
                "k": {"qpu": getattr(self.provider, "qpu", None)},
            }
        if uses_qpu and self._mixed:
            return self._window.submit(lambda: self.submit_payload(context, buffer))
        return self.submit_payload(context, buffer)

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> Future[Any]:
        """Send a call to the workers, as `HighThroughputExecutor` does, from any thread."""
        with self._sending:
            future: Future[Any] = super().submit_payload(context, buffer)
            return future

    def outstanding(self) -> int:
        """Return how many calls have not ended, those that wait for a lane included."""
        return int(super().outstanding()) + self._window.waiting

    def monitor_resources(self) -> bool:
        """Return that Parsl's monitoring of processes is off: it would fork beside QRMI's threads.

        Returns
        -------
        bool
            False.
        """
        return False

    def _get_launch_command(self, block_id: str) -> str:
        # Parsl formats it once more, and quotes no path.
        command = str(self.launch_cmd).replace("{block_id}", block_id)
        for option, path in (("--cert_dir ", self.cert_dir), ("--logdir=", self.worker_logdir)):
            command = command.replace(f"{option}{path} ", f"{option}{shlex.quote(str(path))} ")
        return f"env {QPU_LANES}={self.lanes} {command}"

    def _start_local_interchange_process(self) -> None:
        # A terminal sends Ctrl-C to it too: when it ends by that, Parsl waits for its answer for
        # ever. What is blocked here is inherited; Parsl ends it by SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super()._start_local_interchange_process()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _result_queue_worker(self) -> None:
        read_answers(super()._result_queue_worker, self._tasks)

    def _count_starts(self) -> int:
        """Count the calls for the QPU that may be with the workers: one of these stays free."""
        blocks = sum(status.state is JobState.RUNNING for status in list(self._status.values()))
        workers = int(self.max_workers_per_node)
        return max(1, blocks) * max(1, min(self.lanes + _OVERLAP, workers - 1))

    def shutdown(self, timeout: float = 10.0) -> None:
        """Shut down; blocks that are left give their leases back within half a minute."""
        self._ended.set()
        super().shutdown(timeout)

    def _say_alive(self) -> None:
        folder = getattr(self.provider, "script_dir", None)
        if folder is None:
            return
        file = Path(folder, ALIVE_FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        name = f"{self.label}-alive"
        threading.Thread(target=_touch, args=(file, self._ended), name=name, daemon=True).start()


def _touch(file: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_SECONDS):
        try:
            file.touch()
        except OSError as error:  # a full or absent file system: the blocks will notice it too
            logger.warning("%s could not be touched: %s", file, error)
