"""A Parsl executor whose workers share a QPU's lanes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import typeguard
from parsl.data_provider.staging import Staging
from parsl.executors import HighThroughputExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobStatus
from parsl.providers.base import ExecutionProvider

from parsl_ext.launcher import ALIVE_FILE
from parsl_ext.provider import QPUProvider

__all__ = ["QPUExecutor"]

logger = logging.getLogger(__name__)

_TOUCH_SECONDS = 5.0
_NO_SHARE_OF_A_CORE = 1e-9  # a worker that waits for a QPU needs no core of its own


class QPUExecutor(HighThroughputExecutor):
    """Runs apps in blocks that hold a QPU, as many at once as the QPU has lanes.

    A `HighThroughputExecutor` with other defaults: a worker for each lane whatever the block's
    cores, no prefetching, and losses noticed within 30 s. When it starts it asks the scheduler
    whether the QPU is offered, so that `parsl.load` raises, and not each task.

    Parameters
    ----------
    label : str
        Label of this executor. Default is "qpu".
    provider : ExecutionProvider
        A `QPUSlurmProvider`, or another provider whose launcher is a `LeaseLauncher`.
    lanes : int | None
        Tasks at once in a block; as the site policy says when it is None.
    address : str | None
        The submit side's address as the workers reach it. All of its addresses when it is None.
    launch_cmd, worker_port, worker_port_range, interchange_port_range, storage_access, working_dir
        As in Parsl's `HighThroughputExecutor`.
    worker_debug, poll_period, address_probe_timeout, worker_logdir_root, block_error_handler
        As in Parsl's `HighThroughputExecutor`.
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
            max_workers_per_node=lanes,
            prefetch_capacity=0,
            heartbeat_threshold=heartbeat_threshold,
            heartbeat_period=heartbeat_period,
            drain_period=drain_period,
            poll_period=poll_period,
            address_probe_timeout=address_probe_timeout,
            worker_logdir_root=worker_logdir_root,
            block_error_handler=block_error_handler,
            encrypted=encrypted,
        )
        self.lanes = lanes
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
