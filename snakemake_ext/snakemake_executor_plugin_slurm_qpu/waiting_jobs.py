"""Jobs that no QPU fits now: they wait here, not in Slurm, until one can be chosen."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from qrmi_workflows.errors import LeaseError
from snakemake_executor_plugin_slurm_qpu.stage_executor import StageExecutor

__all__ = ["WaitingExecutor", "WaitingJobs"]

_PAUSE = 5.0
"""Seconds between two attempts to choose: for as long, the vendors' answers are kept."""

_TELL_SECONDS = 60.0
"""How long not to say again why a job waits, though the reason has changed."""


class WaitingJobs:
    """The waiting jobs of a run.

    Args:
        logger: Snakemake's logger.
        submit: Submits a job; it comes back if there is still no QPU for it.
    """

    def __init__(self, logger: Any, submit: Callable[[Any], None]) -> None:
        self._logger = logger
        self._submit = submit
        self._jobs: dict[Any, None] = {}
        self._told: dict[Any, tuple[str, float]] = {}
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    def add(self, job: Any, reason: str) -> None:
        """Let a job wait, and say why."""
        told, told_at = self._told.get(job, ("", -_TELL_SECONDS))
        if reason != told and monotonic() >= told_at + _TELL_SECONDS:
            self._told[job] = reason, monotonic()
            self._logger.info(f"Job {job.jobid} waits for a QPU: {reason}")
        with self._lock:
            self._jobs[job] = None
            if self._thread is None and not self._stop.is_set():
                self._thread = Thread(target=self._run, name="qpu-waiting-jobs", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Drop the jobs: the run ends."""
        self._stop.set()
        with self._lock:
            self._jobs.clear()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            with self._lock:
                jobs = list(self._jobs)
                self._jobs.clear()
                if not jobs:
                    self._thread = None
                    return
            for job in jobs:
                self._submit(job)


class WaitingExecutor(StageExecutor):
    """The stock Slurm executor, with jobs that wait until a QPU can be chosen for them."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), which starts the thread that checks jobs (see MarkerExecutor).
        self._waiting = WaitingJobs(logger, self._submit_waiting)
        super().__init__(workflow, logger)

    def _wait_for_qpu(self, job: Any, error: LeaseError) -> None:
        if error.retryable:
            self._waiting.add(job, str(error))
        else:
            self._fail_submission(job, error)

    def _submit_waiting(self, job: Any) -> None:
        """Submit a job for which there was no QPU; called in a thread of its own."""
        try:
            # Planning a stage reads the graph of jobs, which Snakemake changes under this lock.
            with self.workflow.scheduler._lock:
                self._stage_plan(job)
            self._job_submission_executor.submit(self.run_job, job)
        except LeaseError as error:
            self._wait_for_qpu(job, error)
        except Exception as error:
            if not self._is_cancelled:  # after that, the pool takes no more jobs
                self._fail_submission(job, error)

    def _fail_submission(self, job: Any, error: BaseException) -> None:
        """Report a job that could not be submitted as failed."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """End the run; no job waits any longer."""
        self._waiting.stop()
        super().shutdown()
