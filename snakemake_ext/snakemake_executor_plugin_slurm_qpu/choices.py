"""The QPUs that jobs get, where their rules leave a choice: chosen once for each attempt.

A stage gets one for all of its jobs. An attempt, or a rerun, at a step that has tasks goes to the
QPU that has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from qrmi_workflows.choice.reasons import choice_variable
from qrmi_workflows.journal.journal import Journal
from snakemake_executor_plugin_slurm_qpu.job_names import step_name
from snakemake_executor_plugin_slurm_qpu.wishes import Wish, find_names

if TYPE_CHECKING:
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.choice.choose import Choice

__all__ = ["QPUChoices", "set_qpu_name"]


class QPUChoices:
    """The choices of one workflow."""

    def __init__(self) -> None:
        self._made: dict[object, tuple[Choice, ...]] = {}
        self._lock = Lock()

    def of_attempt(self, job: Any) -> tuple[Choice, ...]:
        """Return the choices that were made for an attempt at a job; none if there were none."""
        return self._made.get((job, job.attempt), ())

    def variables(self, job: Any) -> dict[str, str]:
        """Return the variables that tell a job why its QPUs were chosen."""
        made = self.of_attempt(job)
        return choice_variable(made) if made else {}

    def require_possible(self, wish: Wish, asker: Asker) -> None:
        """Refuse a wish that no QPU can ever satisfy.

        Raises:
            QPUError: No QPU can.
        """
        # Here and below: Snakemake imports this module each time it starts.
        from qrmi_workflows.choice.choose import require_possible

        require_possible([each.constraint for each in wish], asker)

    def choose(
        self, job: Any, wish: Wish, asker: Asker, *, stage: str | None = None
    ) -> tuple[str, ...]:
        """Return the QPUs of a job, and choose them if that has not been done.

        Args:
            job: The job or group.
            wish: What it asks for.
            asker: Who asks.
            stage: The stage that the job is in; its QPU has been chosen.

        Raises:
            LeaseError: None that fits can be chosen now; `retryable` is true.
            QPUError: None ever can.
        """
        constraints = [each.constraint for each in wish]
        with self._lock:
            if stage is not None and (made := self._made.get(stage)) is not None:
                self._made[job, job.attempt] = made
            elif (job, job.attempt) not in self._made:
                self._made[job, job.attempt] = _choose(constraints, asker, [job])
            return tuple(choice.qpu for choice in self._made[job, job.attempt])

    def choose_for_stage(
        self, stage: str, jobs: Sequence[Any], wish: Wish, asker: Asker, opened: str | None
    ) -> str:
        """Return the QPU of a stage, and choose it if that has not been done in this run.

        Args:
            stage: The stage's name.
            jobs: Its jobs that use the QPU.
            wish: What they ask for.
            asker: Who asks.
            opened: The QPU of the stage, if it is open.

        Raises:
            QPUError: As in `choose`.
        """
        from qrmi_workflows.choice.choose import Choice

        (constraint,) = [each.constraint for each in wish]
        made: tuple[Choice, ...]
        with self._lock:
            if stage not in self._made:
                if opened is not None and find_names([constraint], [opened]):
                    why = f"stage {stage!r} is open with it"
                    made = (Choice(qpu=opened, request=str(constraint), why=why),)
                else:
                    made = _choose([constraint], asker, jobs)
                self._made[stage] = made
            return self._made[stage][0].qpu


def _choose(constraints: Sequence[Any], asker: Asker, jobs: Iterable[Any]) -> tuple[Choice, ...]:
    from qrmi_workflows.choice.resumed import choose_for_step

    records = (record for job in jobs for record in Journal().step(step_name(job)).records())
    return choose_for_step(constraints, asker, records)


def set_qpu_name(job: Any, names: Iterable[str]) -> None:
    """Let a job's `resources.qpu_name` be the names of its QPUs, for its commands and scripts."""
    # As `Job.resources` and `Job.attempt` of snakemake 9.27.1 keep and forget them.
    values: Mapping[str, Any] = dict(job.resources.items())
    kind = type(job.resources)
    job._resources = kind(fromdict={**values, "qpu_name": "+".join(names)})
    job._params = job._non_derived_params = None
