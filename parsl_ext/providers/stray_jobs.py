"""Stray jobs: those of unanswered submissions, and those that survived their cancellation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from qrmi_workflows.schedulers.base import JobStatus

__all__ = ["StrayJobs"]

_CANCEL_AGAIN_SECONDS = 60.0
"""How long after its cancellation a job may still be listed before it is cancelled again."""

_LATE_SECONDS = 600.0
"""How long after an unanswered submission its job may appear."""


class StrayJobs:
    """Finds the jobs that a provider should cancel.

    A scheduler may accept a submission after its command has timed out, and a cancellation may have
    no effect, for example if the controller is restarted.
    """

    def __init__(self) -> None:
        self._cancelled: dict[str, float] = {}  # job id: when it was cancelled
        self._unanswered: dict[str, float] = {}  # job name: when it was submitted

    def __bool__(self) -> bool:
        """Whether the scheduler must be asked for its jobs even if there is no block."""
        return bool(self._cancelled or self._unanswered)

    def add_unanswered(self, job_name: str) -> None:
        """Remember a submission that failed: its job may appear later."""
        self._unanswered[job_name] = time.monotonic()

    def add_cancelled(self, job_ids: Iterable[str]) -> None:
        """Remember jobs whose cancellation has been requested."""
        self._cancelled |= dict.fromkeys(job_ids, time.monotonic())

    def remove_cancelled(self, job_ids: Iterable[str]) -> None:
        """Forget jobs whose cancellation the scheduler rejected."""
        for job_id in job_ids:
            self._cancelled.pop(job_id, None)

    def find(self, listed: Mapping[str, JobStatus]) -> list[str]:
        """Return the ids of the listed jobs that should be cancelled now."""
        now = time.monotonic()
        names = {id_: job.name for id_, job in listed.items() if not job.state.is_final}
        self._cancelled = {id_: at for id_, at in self._cancelled.items() if id_ in names}
        self._unanswered = {
            name: at for name, at in self._unanswered.items() if now - at < _LATE_SECONDS
        }
        again = [id_ for id_, at in self._cancelled.items() if now - at > _CANCEL_AGAIN_SECONDS]
        late = [
            id_
            for id_, name in names.items()
            if name in self._unanswered and id_ not in self._cancelled
        ]
        return again + late
