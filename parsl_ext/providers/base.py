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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus as BlockStatus
from parsl.launchers.base import Launcher
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from parsl.utils import RepresentationMixin

from parsl_ext.alive_file import give_up, keep_alive, stop_touching
from parsl_ext.block_launcher import choose_launchers
from parsl_ext.emulated import require_emulation
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.parsl_run import are_calls_waiting, is_run_over
from parsl_ext.providers.job_queue import JobQueue
from parsl_ext.providers.job_script import render_job_script
from parsl_ext.providers.moves import BlockMoves
from parsl_ext.providers.stage_blocks import StageBlocks
from parsl_ext.providers.stray_jobs import StrayJobs
from parsl_ext.stages import QPUStage, resolve_stage
from qrmi_workflows.config.site import QPUPolicy, site_policy_for
from qrmi_workflows.errors import QPUError, SchedulerError
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.schedulers.base import JobState, JobStatus, QPURequest, Scheduler
from qrmi_workflows.schedulers.several import check_all_offered, compile_requests, granted_policy

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
    request : QPURequest | None
        The QPU, and the number of the scheduler's units of it; None for classical blocks of a
        stage.
    also : sequence of QPURequest
        More QPUs that each block holds.
    chooses : bool
        Whether the QPUs are chosen later (`_hold`), before the first block is submitted.
    fallback : sequence of str
        The QPUs to go on with if the QPU of the blocks goes away, in order.
    stage : QPUStage | str | None
        The stage of several jobs that the blocks belong to. They do not ask the scheduler for the
        QPU, but use the lease of the stage's keeper, and wait until it is ready.
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
    account : str | None
        The account that blocks are charged to.
    partition : str | None
        The partition that the user has chosen for the blocks.
    """

    def __init__(
        self,
        *,
        label: str,
        request: QPURequest | None,
        also: Sequence[QPURequest] = (),
        chooses: bool = False,
        fallback: Sequence[str] = (),
        stage: QPUStage | str | None = None,
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
        account: str | None = None,
        partition: str | None = None,
    ) -> None:
        requests = (*([] if request is None else [request]), *also)
        names = [each.qpu for each in requests]
        self._policy = site_policy_for(names, None if site is None else Path(site))
        for each in requests:
            self._policy.qpu(each.qpu)  # refuses a QPU that the site does not offer
        chosen = None if chooses else resolve_stage(stage, requests, self._policy)
        self._stage = None
        if chosen is not None:
            self._stage = StageBlocks(chosen, request is None, scheduler, site)
        self._scheduler = scheduler
        self._charged = {"account": account, "partition": partition}
        self._nodes = nodes_per_block
        self._requests: tuple[QPURequest, ...] = ()
        self._moves = BlockMoves(fallback, is_in_stage=chosen is not None)
        self.ends_moved_blocks = True  # unless the executor does, which knows their calls
        if chooses:
            launcher = LeaseLauncher() if launcher is None else launcher
        else:
            launcher = self._hold(requests, launcher, None if chosen is None else chosen.name)
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
        self.qpu: str | list[str] | None = ",".join(names) or None
        self.count = 1 if request is None else request.count
        self.stage = stage
        self.site = site
        self.cores_per_node: int | None = None
        self.mem_per_node: int | None = None
        self.scheduler_options = scheduler_options
        self.worker_init = worker_init
        self._queue = JobQueue(scheduler, cmd_timeout)
        self._last_listed: dict[str, float] = {}
        self._strays = StrayJobs()
        self._status_polling_interval = status_polling_interval

    def _hold(
        self, requests: Sequence[QPURequest], launcher: Launcher | None, stage: str | None = None
    ) -> Launcher:
        """Have the blocks hold these QPUs; return their launcher, as Parsl sees it.

        Raises
        ------
        RequestError
            This user, or one job, cannot hold them, or the launcher is for others.
        """
        names = [each.qpu for each in requests]
        require_emulation(names, self._nodes)
        if self._moves.moved is None:
            self._require_fallback(requests)
        launcher, self._block_launcher = choose_launchers(launcher, ",".join(names), stage)
        self._compiled = compile_requests(requests, self._policy, self._scheduler, **self._charged)
        self._requests = tuple(requests)
        return launcher

    def _require_fallback(self, requests: Sequence[QPURequest]) -> None:
        self._moves.require_valid([each.qpu for each in requests])
        offered = [name for name in self._moves.fallback if name in self._policy.qpus]
        for name in offered:  # refuses a QPU that this user may not use
            others = [replace(each, qpu=name) for each in requests]
            compile_requests(others, self._policy, self._scheduler, **self._charged)

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two queries of the scheduler's queue."""
        return self._status_polling_interval

    @property
    def script_dir(self) -> str | None:
        """The folder of the job scripts, which Parsl sets when it loads the executor."""
        return self._script_dir

    @script_dir.setter
    def script_dir(self, folder: str | None) -> None:
        self._script_dir = folder
        if folder is not None and self._stage is not None:
            self._stage.join_run(folder)

    @property
    def qpu_policies(self) -> list[QPUPolicy]:
        """How the site grants each of the block's QPUs, and how many lanes each has."""
        policies = [granted_policy(each, self._policy) for each in self._requests]
        lanes = self._stage and self._stage.lanes
        return [replace(each, lanes=lanes) for each in policies] if lanes else policies

    def check(self) -> None:
        """Ask the scheduler whether it offers the QPU; called when a `QPUExecutor` starts.

        Raises
        ------
        UnknownQPUError
            The scheduler does not offer the QPU.
        RequestError
            The scheduler offers fewer units of it, or fewer lanes, than requested; or not all QPUs
            to one job.
        SchedulerError
            The scheduler does not answer.
        """
        check_all_offered(self._requests, self._policy, self._scheduler)
        if self._stage is not None:
            self._stage.check_lanes(self._policy)

    def job_options(self, tasks_per_node: int) -> list[str]:
        """Return the scheduler's options for a block, without those that ask for the QPU."""
        raise NotImplementedError

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.qpu") -> str:
        """Submit a block and return its job's id.

        Raises
        ------
        SubmitException
            The block's stage could not be opened, or the scheduler rejected the job, or did not
            answer in time.
        """
        if self.script_dir is None:
            raise SubmitException(job_name, "script_dir is not set. Load Parsl, which sets it.")
        self._follow_moves()
        stage, stage_options = self._open_stage(job_name)
        # The name is unique, so that the job is found even if the scheduler does not answer.
        name = f"{job_name}.{uuid.uuid4().hex[:12]}"
        script = Path(self.script_dir, name).absolute()
        alive = Path(f"{script}.alive")
        text = self._render_script(script, command, tasks_per_node, alive, stage_options)
        script.write_text(text, encoding="utf-8")
        keep_alive(alive)
        try:
            job_id = self._submit_script(script)
        except BaseException:
            give_up(alive)  # the job may still appear
            raise
        self._moves.expect(job_id, _move_file(script))
        self._last_listed[job_id] = time.monotonic()
        self.resources[job_id] = {
            "job_id": job_id,
            "alive": alive,
            "job_stdout_path": f"{script}.stdout",
            "job_stderr_path": f"{script}.stderr",
        }
        if self._stage is not None and stage is not None:
            self._stage.add(job_id, stage)
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
            False for blocks that the scheduler refused to cancel, and for those that wait for their
            stage while calls wait for them.
        """
        kept: set[str] = set()
        if is_over := is_run_over(self):
            for job_id in job_ids:
                give_up(self.resources[job_id]["alive"])
        elif self._stage is not None and are_calls_waiting(self):
            # HTEX takes a block without workers for idle; see `QPUExecutor.scale_in`.
            kept = set(filter(self._stage.is_waiting, job_ids))
        cancelled = [job_id for job_id in job_ids if job_id not in kept]
        done = not cancelled or self._cancel(cancelled)
        if is_over and self._stage is not None:
            self._stage.close()
        return [done and job_id not in kept for job_id in job_ids]

    def _cancel(self, job_ids: Sequence[str]) -> bool:
        errors: list[SchedulerError] = []
        self._start_cancelling(job_ids, errors).join(_CANCEL_SECONDS)
        if errors:
            self._strays.remove_cancelled(job_ids)
            return False
        for job_id in job_ids:
            if not self.resources[job_id]["status"].terminal:
                self._set_status(job_id, BlockState.CANCELLED)
        return True

    def status(self, job_ids: Sequence[str]) -> list[BlockStatus]:
        """Return the states of blocks, and cancel stray jobs."""
        # ClusterProvider.status (read in Parsl 2026.10.26) calls `_status` only if it is given ids,
        # but stray jobs may exist without any block.
        self._status()
        return [self.resources[job_id]["status"] for job_id in job_ids]

    def _status(self) -> None:
        # Parsl's hook for updating `self.resources`, its table of blocks (read in 2026.10.26).
        self._follow_moves()
        open_jobs = [id_ for id_, job in self.resources.items() if not job["status"].terminal]
        if not (open_jobs or self._strays):
            return
        try:
            listed = self._queue.list_jobs(open_jobs)
        except SchedulerError as error:
            logger.warning("could not ask the scheduler for the states of blocks: %s", error)
            return
        for job_id in open_jobs:
            self._update_status(job_id, listed)
        if strays := self._strays.find(listed):
            logger.warning("cancelling stray jobs: %s", ", ".join(strays))
            self._start_cancelling(strays, [])

    def moved_jobs(self) -> set[str]:
        """Return the jobs of the blocks whose QPU has gone, whether they have ended or not."""
        self._follow_moves()
        return set(self._moves.jobs)

    def _follow_moves(self) -> None:
        """Have the next blocks hold the next QPU if one has gone, and cancel those that hold it."""
        jobs = self._moves.find()
        if self._moves.moved is None or not jobs:
            return
        moved = replace(self._requests[0], qpu=self._moves.moved.qpu)
        launcher = self.launcher
        if isinstance(launcher, LeaseLauncher):  # it is for the QPU that has gone
            launcher = LeaseLauncher(inner=launcher.inner, on_stop=launcher.on_stop)
        self._hold([moved], launcher)
        if self.ends_moved_blocks:
            self._cancel([each for each in jobs if not self.resources[each]["status"].terminal])

    def _update_status(self, job_id: str, listed: Mapping[str, JobStatus]) -> None:
        now, job = time.monotonic(), listed.get(job_id)
        if job is not None:
            self._last_listed[job_id] = now
            state = _BLOCK_STATES.get(job.state)
            if state is None:
                logger.warning("job %s: unknown state; keeping the last one", job_id)
                return
            exit_code = job.exit_code if job.state.is_final else None
            message = job.reason
            if self._stage is not None:
                message = self._stage.message(job_id, listed) or message
                state = BlockState.PENDING if self._stage.is_waiting(job_id) else state
            self._set_status(job_id, state, message or None, exit_code)
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

    def _open_stage(self, job_name: str) -> tuple[Stage | None, list[str]]:
        """Open the block's stage; return it with the options of a block that waits for it."""
        if self._stage is None:
            return None, []
        try:
            stage = self._stage.open()
            return stage, self._stage.options(stage)
        except (QPUError, OSError) as error:
            raise SubmitException(job_name, f"its stage could not be opened: {error}") from error

    def _submit_script(self, script: Path) -> str:
        try:
            return self._queue.submit(script)
        except SchedulerError as error:
            self._strays.add_unanswered(script.name)
            raise SubmitException(
                script.name, str(error), stderr=error.stderr, retcode=error.returncode
            ) from error

    def _variables(self) -> dict[str, str]:
        """Return variables for the blocks."""
        return {}

    def _qpu_options(self) -> list[str]:
        # The keeper of a stage holds its QPU.
        return [] if self._stage is not None else self._compiled

    def _render_script(
        self,
        path: Path,
        command: str,
        tasks_per_node: int,
        alive: Path,
        stage_options: Sequence[str],
    ) -> str:
        cores, nodes = self.cores_per_node, self.nodes_per_block
        return render_job_script(
            path,
            self._block_launcher.wrap(
                command,
                tasks_per_node,
                nodes,
                str(self.script_dir),
                alive=alive,
                fallback=self._moves.options(_move_file(path)) or None,
            ),
            scheduler=self._scheduler,
            options=[*self._qpu_options(), *self.job_options(tasks_per_node)],
            scheduler_options=self.scheduler_options,
            stage_options=stage_options,
            worker_init=self.worker_init,
            variables=self._variables(),
            cores=None if cores is None else max(1, cores // tasks_per_node),
            memory_gb=self.mem_per_node,
        )


def _move_file(script: Path) -> Path:
    """Return the file in which a block says that it needs another QPU."""
    return script.with_name(f"{script.name}.moved")
