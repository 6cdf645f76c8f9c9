"""The base of providers whose blocks hold a QPU, for any scheduler.

It extends Parsl's `ClusterProvider`, not `SlurmProvider`, because a block that is lost or submitted
twice costs QPU time. `SlurmProvider` (read in Parsl 2026.10.26) reports a failed job as completed
at the next poll (https://github.com/Parsl/parsl/issues/3488), and reports a job that Slurm does not
list yet as completed for good. It loses the job if sbatch times out, and a slow scancel stops the
polling of all blocks (https://github.com/Parsl/parsl/issues/2232).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus as BlockStatus
from parsl.launchers.base import Launcher
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from parsl.utils import RepresentationMixin

from parsl_ext.alive_file import give_up, keep_alive, stop_touching
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.parsl_run import is_run_over
from parsl_ext.providers.job_queue import JobQueue
from parsl_ext.providers.job_script import render_job_script
from parsl_ext.providers.several import join_options
from parsl_ext.providers.stray_jobs import StrayJobs
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, JobStatus, QPURequest, Scheduler

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
    JobState.SUSPENDED: BlockState.HELD,
}
_CANCEL_SECONDS = 2.0
"""How long `cancel` blocks: one thread of Parsl's polls and scales the blocks of all executors."""

_UNLISTED_SECONDS = 60.0
"""How long a job may be missing from the scheduler's lists before it counts as ended."""


class QPUProvider(ClusterProvider, RepresentationMixin):
    """Blocks that hold a QPU, on any scheduler that `qrmi_workflows.schedulers` knows.

    This is a base class; `QPUSlurmProvider` is the provider for Slurm. A provider for another
    scheduler adds that scheduler's hooks (`qrmi_workflows.schedulers`), its own arguments, and
    `job_options`.

    Parameters
    ----------
    label : str
        Label of this provider.
    request : QPURequest
        The QPU, and the number of the scheduler's units of it.
    also : sequence of QPURequest
        More QPUs that each block holds.
    scheduler : Scheduler
        The scheduler's hooks.
    site : str | None
        Path of the site policy. If None, it is found as the `qpu` command finds it.
    nodes_per_block, init_blocks, min_blocks, max_blocks, parallelism, walltime, cmd_timeout
        As in Parsl's own providers.
    scheduler_options : str
        Lines with further directives for the scheduler.
    worker_init : str
        Commands to run before the workers start.
    launcher : Launcher | None
        The launcher. If None, a `LeaseLauncher`. Any other launcher runs inside of one.
    status_polling_interval : int
        Seconds between two queries of the scheduler's queue.
    """

    def __init__(
        self,
        *,
        label: str,
        request: QPURequest,
        also: Sequence[QPURequest] = (),
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
        requests = (request, *also)
        leased = ",".join(each.qpu for each in requests)
        launcher = LeaseLauncher() if launcher is None else launcher
        if isinstance(launcher, LeaseLauncher):
            launcher = launcher.for_qpu(leased)
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
        # Some executors insist on a launcher of their own, for example Parsl's `MPIExecutor`.
        self._lease = (
            launcher
            if isinstance(launcher, LeaseLauncher)
            else LeaseLauncher(qpu=leased, inner=launcher)
        )
        self.qpu: str | list[str] = leased if also else request.qpu
        self.count = request.count
        self.site = site
        self.cores_per_node: int | None = None
        self.mem_per_node: int | None = None
        self.scheduler_options = scheduler_options
        self.worker_init = worker_init
        self._requests = requests
        self._scheduler = scheduler
        self._policy = load_site_policy(None if site is None else Path(site))
        for each in requests:
            self._policy.qpu(each.qpu)  # refuses a QPU that the site does not offer
        self._qpu_options()  # refuses QPUs that one job cannot hold
        self._queue = JobQueue(scheduler, cmd_timeout)
        self._last_listed: dict[str, float] = {}
        self._strays = StrayJobs()
        self._status_polling_interval = status_polling_interval

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two queries of the scheduler's queue."""
        return self._status_polling_interval

    @property
    def qpu_policies(self) -> list[QPUPolicy]:
        """How the site grants each of the block's QPUs, and how many lanes each has."""
        return [self._policy.qpu(each.qpu) for each in self._requests]

    def check(self) -> None:
        """Ask the scheduler whether it offers the QPU; called when a `QPUExecutor` starts.

        Raises
        ------
        UnknownQPUError
            The scheduler does not offer the QPU.
        RequestError
            The scheduler offers fewer units of it than requested.
        SchedulerError
            The scheduler does not answer.
        """
        for request in self._requests:
            self._scheduler.check_offered(request, self._policy)

    def job_options(self, tasks_per_node: int) -> list[str]:
        """Return the scheduler's options for a block, without those that ask for the QPU."""
        raise NotImplementedError

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.qpu") -> str:
        """Submit a block and return its job's id.

        Raises
        ------
        SubmitException
            The scheduler rejected the job, or did not answer in time.
        """
        if self.script_dir is None:
            raise SubmitException(job_name, "script_dir is not set. Load Parsl, which sets it.")
        # The name is unique, so that the job is found even if the scheduler does not answer.
        name = f"{job_name}.{uuid.uuid4().hex[:12]}"
        script = Path(self.script_dir, name).absolute()
        alive = Path(f"{script}.alive")
        text = self._render_script(script, command, tasks_per_node, alive)
        script.write_text(text, encoding="utf-8")
        keep_alive(alive)
        try:
            job_id = self._submit_script(script)
        except BaseException:
            give_up(alive)  # the job may still appear
            raise
        self._last_listed[job_id] = time.monotonic()
        self.resources[job_id] = {
            "job_id": job_id,
            "alive": alive,
            "job_stdout_path": f"{script}.stdout",
            "job_stderr_path": f"{script}.stderr",
        }
        self._set_status(job_id, BlockState.PENDING)
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Cancel pending or running blocks; each releases its lease at the first SIGTERM.

        This method waits neither for the release nor for a slow scheduler. Processes that ignore
        SIGTERM are killed by the block's supervisor, and finally by the scheduler. Running tasks
        are left for the retry of their calls, unless Parsl's run is over.

        Returns
        -------
        list of bool
            False for blocks that the scheduler refused to cancel.
        """
        if not job_ids:
            return []
        if is_run_over(self):
            for job_id in job_ids:
                give_up(self.resources[job_id]["alive"])
        errors: list[SchedulerError] = []
        self._start_cancelling(job_ids, errors).join(_CANCEL_SECONDS)
        if errors:
            self._strays.remove_cancelled(job_ids)
            return [False] * len(job_ids)
        for job_id in job_ids:
            if not self.resources[job_id]["status"].terminal:
                self._set_status(job_id, BlockState.CANCELLED)
        return [True] * len(job_ids)

    def status(self, job_ids: Sequence[str]) -> list[BlockStatus]:
        """Return the states of blocks, and cancel stray jobs."""
        # ClusterProvider.status (read in Parsl 2026.10.26) calls `_status` only if it is given ids,
        # but stray jobs may exist without any block.
        self._status()
        return [self.resources[job_id]["status"] for job_id in job_ids]

    def _status(self) -> None:
        # Parsl's hook for updating `self.resources`, its table of blocks (read in 2026.10.26).
        open_jobs = [id_ for id_, job in self.resources.items() if not job["status"].terminal]
        if not (open_jobs or self._strays):
            return
        try:
            listed = self._queue.list_jobs(open_jobs)
        except SchedulerError as error:
            logger.warning("could not ask the scheduler for the states of blocks: %s", error)
            return
        for job_id in open_jobs:
            self._update_status(job_id, listed.get(job_id))
        if strays := self._strays.find(listed):
            logger.warning("cancelling stray jobs: %s", ", ".join(strays))
            self._start_cancelling(strays, [])

    def _update_status(self, job_id: str, listed: JobStatus | None) -> None:
        now = time.monotonic()
        if listed is not None:
            self._last_listed[job_id] = now
            state = _BLOCK_STATES.get(listed.state)
            if state is None:
                logger.warning("job %s: unknown state; keeping the last one", job_id)
            else:
                exit_code = listed.exit_code if listed.state.is_final else None
                self._set_status(job_id, state, listed.reason or None, exit_code)
        elif now - self._last_listed[job_id] > _UNLISTED_SECONDS:
            # Neither the queue nor the accounting knows the job any more, so it must have ended.
            self._set_status(job_id, BlockState.COMPLETED, "the scheduler no longer lists the job")

    def _start_cancelling(
        self, job_ids: Sequence[str], errors: list[SchedulerError]
    ) -> threading.Thread:
        """Cancel jobs in a thread; Python waits for that thread before it exits."""

        def cancel() -> None:
            try:
                self._queue.cancel(job_ids)
            except SchedulerError as error:
                logger.warning("could not cancel %s: %s", ", ".join(job_ids), error)
                errors.append(error)

        self._strays.add_cancelled(job_ids)
        thread = threading.Thread(target=cancel, name=f"{self.label}-cancel")
        thread.start()
        return thread

    def _set_status(
        self,
        job_id: str,
        state: BlockState,
        message: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        job = self.resources[job_id]
        job["status"] = BlockStatus(
            state,
            message,
            exit_code,
            stdout_path=job["job_stdout_path"],
            stderr_path=job["job_stderr_path"],
        )
        if job["status"].terminal:
            stop_touching(job["alive"])

    def _submit_script(self, script: Path) -> str:
        try:
            return self._queue.submit(script)
        except SchedulerError as error:
            self._strays.add_unanswered(script.name)
            raise SubmitException(
                script.name, str(error), stderr=error.stderr, retcode=error.returncode
            ) from error

    def _qpu_options(self) -> list[str]:
        return join_options(
            self._scheduler.qpu_options(each, self._policy) for each in self._requests
        )

    def _render_script(self, path: Path, command: str, tasks_per_node: int, alive: Path) -> str:
        cores, nodes = self.cores_per_node, self.nodes_per_block
        return render_job_script(
            path,
            self._lease.wrap(command, tasks_per_node, nodes, self.script_dir, alive=alive),
            scheduler=self._scheduler,
            options=[
                *self._qpu_options(),
                *self.job_options(tasks_per_node),
            ],
            scheduler_options=self.scheduler_options,
            worker_init=self.worker_init,
            cores=None if cores is None else max(1, cores // tasks_per_node),
            memory_gb=self.mem_per_node,
        )
