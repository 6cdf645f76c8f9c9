"""What all providers share whose blocks hold a QPU, whatever the scheduler."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus
from parsl.launchers.base import Launcher
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from parsl.utils import RepresentationMixin

from parsl_ext.launcher import LeaseLauncher
from qrmi_workflows.config import QPUPolicy, load_site_policy
from qrmi_workflows.environment import without_leases
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, QPURequest, Scheduler, run_command

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
_FORGOTTEN_SECONDS = 60.0


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
        self.scheduler_options = scheduler_options
        self.worker_init = worker_init
        self._request = request
        self._scheduler = scheduler
        self._policy = load_site_policy(None if site is None else Path(site))
        self._policy.qpu(request.qpu)
        self._submitted: dict[str, float] = {}
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
        # A unique name, by which a job is found again whose submission was never answered.
        name = f"{job_name}.{uuid.uuid4().hex[:12]}"
        script = Path(self.script_dir, name).absolute()
        script.write_text(self._script(script, command, tasks_per_node), encoding="utf-8")
        job_id = self._submit(script)
        self._submitted[job_id] = time.monotonic()
        self.resources[job_id] = {
            "job_id": job_id,
            "job_stdout_path": f"{script}.stdout",
            "job_stderr_path": f"{script}.stderr",
        }
        self._set(job_id, BlockState.PENDING)
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Cancel blocks: each gives its lease back at the first SIGTERM. Does not wait for that."""
        if not job_ids:
            return []
        try:
            done = run_command(self._scheduler.cancel_argv(job_ids), timeout=self.cmd_timeout)
        except SchedulerError as error:
            logger.warning("cancel of %s: %s", ", ".join(job_ids), error)
            return [False] * len(job_ids)
        if done.returncode != 0:
            logger.warning("cancel of %s: %s", ", ".join(job_ids), done.stderr.strip())
            return [False] * len(job_ids)
        for job_id in job_ids:
            self._set(job_id, BlockState.CANCELLED)
        return [True] * len(job_ids)

    def _status(self) -> None:
        open_jobs = [id_ for id_, job in self.resources.items() if not job["status"].terminal]
        if not open_jobs:
            return
        try:
            listed = self._ask(self._scheduler.status_argv())
            gone = [job_id for job_id in open_jobs if job_id not in listed]
            listed |= self._ask_history(gone)
        except SchedulerError as error:
            logger.warning("the scheduler was not asked for blocks: %s", error)
            return
        for job_id in open_jobs:
            self._update(job_id, listed.get(job_id))

    def _update(self, job_id: str, listed: tuple[JobState, str] | None) -> None:
        if listed is not None:
            state = _BLOCK_STATES.get(listed[0])
            if state is None:
                logger.warning("job %s is in a state that is not known; kept as it was", job_id)
            else:
                self._set(job_id, state)
        elif time.monotonic() - self._submitted[job_id] > _FORGOTTEN_SECONDS:
            # Neither the queue nor the accounting knows it any more, so it has ended somehow.
            self._set(job_id, BlockState.COMPLETED, "the scheduler no longer lists it")

    def _ask(self, argv: Sequence[str]) -> dict[str, tuple[JobState, str]]:
        done = run_command(argv, timeout=self.cmd_timeout)
        if done.returncode != 0:
            raise SchedulerError(done.stderr.strip(), done.argv, done.returncode, done.stderr)
        return self._scheduler.parse_status(done.stdout)

    def _ask_history(self, job_ids: Iterable[str]) -> dict[str, tuple[JobState, str]]:
        wanted = list(job_ids)
        argv = self._scheduler.history_argv(wanted) if wanted else None
        if argv is None:
            return {}
        try:
            return self._ask(argv)
        except SchedulerError:  # a site without accounting
            return {}

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
            done = run_command(
                self._scheduler.submit_argv(script),
                timeout=self.cmd_timeout,
                environ=without_leases(),
            )
        except SchedulerError as error:
            self._cancel_unanswered(script.name)
            raise SubmitException(script.name, str(error)) from error
        job_id = self._scheduler.parse_job_id(done.stdout)
        if done.returncode != 0 or job_id is None:
            raise SubmitException(
                script.name,
                f"the scheduler refused the block: {done.stderr.strip()}",
                stdout=done.stdout,
                stderr=done.stderr,
                retcode=done.returncode,
            )
        return job_id

    def _cancel_unanswered(self, name: str) -> None:
        """Cancel a job that may have been accepted although its submission was not answered."""
        try:
            run_command(self._scheduler.cancel_by_name_argv(name), timeout=self.cmd_timeout)
        except SchedulerError as error:
            logger.warning("job %s may be in the queue; cancel it by its name: %s", name, error)

    def _script(self, script: Path, command: str, tasks_per_node: int) -> str:
        options = [
            f"--job-name={script.name}",
            f"--output={script}.stdout",
            f"--error={script}.stderr",
            *self._scheduler.qpu_options(self._request, self._policy),
            *self.job_options(tasks_per_node),
        ]
        body = self.launcher(command, tasks_per_node, self.nodes_per_block, self.script_dir)
        lines = [
            "#!/bin/bash",
            *(self._scheduler.directive(option) for option in options),
            self.scheduler_options,
            self.worker_init,
            f'export JOBNAME="{script.name}"',
            body,
        ]
        return "\n".join(lines) + "\n"
