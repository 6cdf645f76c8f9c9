"""What all providers share whose blocks hold a QPU, whatever the scheduler."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus
from parsl.launchers.base import Launcher
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from parsl.utils import RepresentationMixin

from parsl_ext.launcher import LeaseLauncher
from parsl_ext.providers.queue import Queue
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, QPURequest, Scheduler
from qrmi_workflows.schedulers.base import JobStatus as ListedJob

__all__ = ["QPUProvider"]

logger = logging.getLogger(__name__)

_BLOCK_STATES = {
    JobState.PENDING: BlockState.PENDING,
    JobState.RUNNING: BlockState.RUNNING,
    JobState.COMPLETED: BlockState.COMPLETED,
    JobState.FAILED: BlockState.FAILED,
    JobState.CANCELLED: BlockState.CANCELLED,
    JobState.TIMEOUT: BlockState.TIMEOUT,
    JobState.HELD: BlockState.HELD,
}
_PATIENCE_SECONDS = 2.0
"""Parsl has one thread that asks after, adds and removes the blocks of all executors."""

_FORGOTTEN_SECONDS = 60.0
"""After which a job that a scheduler does not list has ended, and a cancelled one should have."""

_LATE_SECONDS = 600.0
"""In which a job may appear whose submission was not answered."""


class QPUProvider(ClusterProvider, RepresentationMixin):
    """Blocks that hold a QPU, on any scheduler that `qrmi_workflows.schedulers` knows.

    Not used itself: `QPUSlurmProvider` is the one for Slurm. Another scheduler's adds its hooks
    (`qrmi_workflows.schedulers`), its own arguments and `job_options`.

    Parameters
    ----------
    label : str
        Label of this provider.
    request : QPURequest
        The QPU, and how many of the scheduler's units of it.
    scheduler : Scheduler
        The scheduler's hooks.
    site : str | None
        Path of the site policy; found as `qpu` finds it when it is None.
    nodes_per_block, init_blocks, min_blocks, max_blocks, parallelism, walltime, cmd_timeout
        As in Parsl's own providers.
    scheduler_options : str
        Lines of further directives of the scheduler.
    worker_init : str
        Commands to run before the workers start.
    launcher : Launcher | None
        A `LeaseLauncher` when it is None.
    status_polling_interval : int
        Seconds between two looks at the scheduler's queue.
    """

    def __init__(
        self,
        *,
        label: str,
        request: QPURequest,
        scheduler: Scheduler,
        site: str | None,
        nodes_per_block: int,
        init_blocks: int,
        min_blocks: int,
        max_blocks: int,
        parallelism: float,
        walltime: str,
        cmd_timeout: int,
        scheduler_options: str,
        worker_init: str,
        launcher: Launcher | None,
        status_polling_interval: int,
    ) -> None:
        launcher = LeaseLauncher() if launcher is None else launcher
        if isinstance(launcher, LeaseLauncher) and launcher.qpu is None:
            launcher = LeaseLauncher(qpu=request.qpu, inner=launcher.inner)
        super().__init__(
            label,
            nodes_per_block,
            init_blocks,
            min_blocks,
            max_blocks,
            parallelism,
            walltime,
            launcher,
            cmd_timeout=cmd_timeout,
        )
        self.qpu = request.qpu
        self.count = request.count
        self.site = site
        self.cores_per_node: int | None = None
        self.mem_per_node: int | None = None
        self.scheduler_options = scheduler_options
        self.worker_init = worker_init
        self._request = request
        self._scheduler = scheduler
        self._policy = load_site_policy(None if site is None else Path(site))
        self._policy.qpu(request.qpu)
        self._queue = Queue(scheduler, cmd_timeout)
        self._seen: dict[str, float] = {}
        self._cancelled: dict[str, float] = {}
        self._unanswered: dict[str, float] = {}
        self._status_polling_interval = status_polling_interval

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two looks at the scheduler's queue."""
        return self._status_polling_interval

    @property
    def qpu_policy(self) -> QPUPolicy:
        """How the site grants this QPU, and how many lanes it has."""
        return self._policy.qpu(self.qpu)

    def check(self) -> None:
        """Ask the scheduler whether it offers the QPU; `QPUExecutor` does so when it starts.

        Raises:
            UnknownQPUError: It does not.
            SchedulerError: It does not answer.
        """
        self._scheduler.check_offered(self._request, self._policy)

    def job_options(self, tasks_per_node: int) -> list[str]:
        """Return the scheduler's options for a block, besides those for the QPU."""
        raise NotImplementedError

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.qpu") -> str:
        """Submit a block and return its job's id.

        Raises
        ------
        SubmitException
            The scheduler refused the job, or did not answer in time.
        """
        if self.script_dir is None:
            raise SubmitException(job_name, "Parsl has given no script_dir; start it first.")
        # A unique name, by which a job is found whose submission was not answered.
        name = f"{job_name}.{uuid.uuid4().hex[:12]}"
        script = Path(self.script_dir, name).absolute()
        script.write_text(self._script(script, command, tasks_per_node), encoding="utf-8")
        job_id = self._submit(script)
        self._seen[job_id] = time.monotonic()
        self.resources[job_id] = {
            "job_id": job_id,
            "job_stdout_path": f"{script}.stdout",
            "job_stderr_path": f"{script}.stderr",
        }
        self._set(job_id, BlockState.PENDING)
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Cancel blocks, pending or running: each gives its lease back at the first SIGTERM.

        Does not wait for that, nor for a scheduler that is slow to answer. What ignores SIGTERM is
        killed by the block's supervisor, and at last by the scheduler.

        Returns
        -------
        list of bool
            False for blocks whose cancelling the scheduler refused.
        """
        if not job_ids:
            return []
        refused: list[SchedulerError] = []
        self._cancel(job_ids, refused).join(_PATIENCE_SECONDS)
        for job_id in job_ids:
            if refused:
                del self._cancelled[job_id]
            elif not self.resources[job_id]["status"].terminal:
                self._set(job_id, BlockState.CANCELLED)
        return [not refused] * len(job_ids)

    def status(self, job_ids: Sequence[str]) -> list[JobStatus]:
        """Return the states of blocks, and end jobs that should not be there any more."""
        self._status()
        return [self.resources[job_id]["status"] for job_id in job_ids]

    def _status(self) -> None:
        open_jobs = [id_ for id_, job in self.resources.items() if not job["status"].terminal]
        if not (open_jobs or self._cancelled or self._unanswered):
            return
        try:
            listed = self._queue.look(open_jobs)
        except SchedulerError as error:
            logger.warning("the scheduler was not asked for blocks: %s", error)
            return
        for job_id in open_jobs:
            self._update(job_id, listed.get(job_id))
        self._cancel_strays(listed)

    def _update(self, job_id: str, listed: ListedJob | None) -> None:
        now = time.monotonic()
        if listed is not None:
            self._seen[job_id] = now
            state = _BLOCK_STATES.get(listed.state)
            if state is None:
                logger.warning("job %s: unknown state; keeping the last one", job_id)
            else:
                self._set(job_id, state, listed.reason or None)
        elif now - self._seen[job_id] > _FORGOTTEN_SECONDS:
            # Neither the queue nor the accounting knows it any more, so it has ended somehow.
            self._set(job_id, BlockState.COMPLETED, "the scheduler no longer lists it")

    def _cancel_strays(self, listed: dict[str, ListedJob]) -> None:
        """Cancel what was accepted although nobody was told, and again what was not cancelled."""
        now = time.monotonic()
        alive = {id_: job.name for id_, job in listed.items() if not job.state.is_final}
        self._cancelled = {id_: since for id_, since in self._cancelled.items() if id_ in alive}
        self._unanswered = {
            name: since for name, since in self._unanswered.items() if now - since < _LATE_SECONDS
        }
        strays = [id_ for id_, since in self._cancelled.items() if now - since > _FORGOTTEN_SECONDS]
        strays += [
            id_
            for id_, name in alive.items()
            if name in self._unanswered and id_ not in self._cancelled
        ]
        if strays:
            logger.warning("jobs that should not be there are cancelled: %s", ", ".join(strays))
            self._cancel(strays, [])

    def _cancel(self, job_ids: Sequence[str], refused: list[SchedulerError]) -> threading.Thread:
        """Cancel jobs in a thread, which the end of the program waits for."""

        def cancel() -> None:
            try:
                self._queue.cancel(job_ids)
            except SchedulerError as error:
                logger.warning("cancel of %s: %s", ", ".join(job_ids), error)
                refused.append(error)

        self._cancelled |= dict.fromkeys(job_ids, time.monotonic())
        thread = threading.Thread(target=cancel, name=f"{self.label}-cancel")
        thread.start()
        return thread

    def _set(self, job_id: str, state: BlockState, message: str | None = None) -> None:
        job = self.resources[job_id]
        job["status"] = JobStatus(
            state,
            message,
            stdout_path=job["job_stdout_path"],
            stderr_path=job["job_stderr_path"],
        )

    def _submit(self, script: Path) -> str:
        try:
            return self._queue.submit(script)
        except SchedulerError as error:
            self._unanswered[script.name] = time.monotonic()
            raise SubmitException(
                script.name, str(error), stderr=error.stderr, retcode=error.returncode
            ) from error

    def _script(self, script: Path, command: str, tasks_per_node: int) -> str:
        asked = [
            *self._scheduler.qpu_options(self._request, self._policy),
            *self.job_options(tasks_per_node),
        ]
        # These come last, and so stay ours: a block is found by its name.
        stdout, stderr = Path(f"{script}.stdout"), Path(f"{script}.stderr")
        named = self._scheduler.name_options(script.name, stdout=stdout, stderr=stderr)
        lines = [
            "#!/bin/bash",
            *map(self._scheduler.directive, asked),
            self.scheduler_options,
            *map(self._scheduler.directive, named),
            *self._exports(tasks_per_node),
            f'export JOBNAME="{script.name}"',
            self.worker_init,
            self.launcher(command, tasks_per_node, self.nodes_per_block, self.script_dir),
        ]
        return "\n".join(lines) + "\n"

    def _exports(self, tasks_per_node: int) -> list[str]:
        """Return how Parsl's pools learn what they may use of a node."""
        lines = []
        if self.cores_per_node is not None:
            lines.append(f"export PARSL_CORES={max(1, self.cores_per_node // tasks_per_node)}")
        if self.mem_per_node is not None:
            lines.append(f"export PARSL_MEMORY_GB={self.mem_per_node}")
        return lines
