"""Jobs that go on with another QPU because theirs has gone.

A job moves its tasks to another QPU by itself if it may use that one. If not, it says so in a file
(`$QPU_MOVE_FILE`) and ends; the executor then submits it again for that QPU. Snakemake does not
notice: it is the same attempt.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrmi_workflows.config.constraints import parse_fallback
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.fallback_plan import Moved
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in

__all__ = ["Fallbacks", "fallback_of"]


class Fallbacks:
    """The jobs of a run that may fall back to other QPUs."""

    def __init__(self) -> None:
        self._moved: dict[Any, Moved] = {}
        self._files: dict[Any, Path] = {}

    def qpu_of(self, job: Any) -> str | None:
        """Return the QPU that a job needs instead of its own; `None` if that is still there."""
        moved = self._moved.get(job)
        return None if moved is None else moved.qpu

    def options(
        self, job: Any, folder: Path, *, own: Collection[str] = (), is_in_stage: bool
    ) -> list[str]:
        """Return the options of `qpu lease exec` for a job's fallback.

        Args:
            job: The job.
            own: The QPU that it asks for, which may have been chosen from those to fall back to.
            folder: A folder that all nodes see, for what the job may have to say.
            is_in_stage: Whether it uses the lease of a stage: then it only moves by itself.
        """
        moved, fallback = self._moved.get(job), fallback_of(job)
        if not fallback:
            return []
        rest = [each for each in fallback if each not in own] if moved is None else moved.rest
        options = ["--fallback", ",".join(rest)] if rest else []
        if moved is not None:
            options += ["--moved-from", ",".join(moved.left)]
        if rest and not is_in_stage:
            self._files[job] = folder / f"{uuid.uuid4().hex}.moved"
            options += ["--move-file", str(self._files[job])]
        return options

    def take(self, job: Any) -> Moved | None:
        """Return where a job that has failed goes on; `None` if it has not moved."""
        file = self._files.pop(job, None)
        moved = None if file is None else Moved.read(file)
        if file is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if moved is not None:
            self._moved[job] = moved
        return moved

    def forget(self, job: Any) -> None:
        """Forget a job that has ended: run again, it starts with its own QPU."""
        self._moved.pop(job, None)
        if file := self._files.pop(job, None):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def fallback_of(job: Any) -> tuple[str, ...]:
    """Return the QPUs that a job, or group of jobs, may fall back to, in order.

    Raises:
        RequestError: One is not a name, or the rules of the group do not agree.
    """
    return _merge(member.resources.get("qpu_fallback") for member in jobs_in(job))


def _merge(stated: Iterable[str | Sequence[str] | None]) -> tuple[str, ...]:
    found = {parse_fallback(each) for each in stated if each}
    if len(found) > 1:
        shown = " and ".join(repr("|".join(each)) for each in sorted(found))
        raise RequestError(
            f"the rules of one group have the qpu_fallback {shown}; a group is one job, so it must "
            "be the same for all rules that set it."
        )
    return found.pop() if found else ()
