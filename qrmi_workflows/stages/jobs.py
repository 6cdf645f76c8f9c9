"""What a keeper needs of the scheduler that runs its stage's jobs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NoJobs", "StageJobs"]


class StageJobs(Protocol):
    """The jobs of one stage, without the keeper's and the guard's."""

    def release_waiting(self) -> None:
        """Release the jobs that wait for the keeper; those released before are left alone.

        Raises:
            SchedulerError: The scheduler did not answer, or refused.
        """

    def cancel_waiting(self, reason: str) -> None:
        """Cancel the jobs that wait for the keeper, since nobody would release them, and log it.

        Args:
            reason: Why the stage has ended.

        Raises:
            SchedulerError: The scheduler did not answer, or refused.
        """

    def are_left(self) -> bool:
        """Return whether a job of the stage is pending or running.

        Raises:
            SchedulerError: The scheduler did not answer.
        """

    def expect_change(self) -> None:
        """Note that a process of the stage has ended, and so perhaps its last job."""


class NoJobs:
    """A stage whose processes run outside of jobs."""

    def release_waiting(self) -> None:
        """Do nothing."""

    def cancel_waiting(self, reason: str) -> None:
        """Do nothing."""

    def are_left(self) -> bool:
        """Return that there are none."""
        return False

    def expect_change(self) -> None:
        """Do nothing."""
