"""Warm-up tasks: minimal tasks of a keeper's own, which make a session active or keep it so.

Each is a step of its own in the journal. A keeper that is started again after SIGKILL so finds the
one that waits in the vendor's queue, and keeps its place there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.errors import QPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.record_files import read_record
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.tasks.usage import read_submissions

__all__ = ["find_warm_up", "forget_warm_ups", "name_warm_up"]


def name_warm_up(stage: Stage) -> str:
    """Return the name of a new warm-up's step: under an old one, the old result would be found."""
    return f"{_prefix(stage)}{uuid.uuid4().hex[:8]}"


def find_warm_up(stage: Stage, usage: Path | None) -> str | None:
    """Return the step of a warm-up task that an earlier keeper of a stage has left, if any.

    Args:
        stage: The stage.
        usage: The usage file of its lease.
    """
    return None if usage is None else next(_submitted(stage, usage), None)


def forget_warm_ups(stage: Stage) -> None:
    """Forget a stage's warm-up tasks, so that its lease is not kept open for them."""
    for opened in open_leases():
        if opened.qpu == stage.qpu:
            for step in list(_submitted(stage, opened.usage_path)):
                with suppress(QPUError):
                    Journal().archive(step)


def _submitted(stage: Stage, usage: Path) -> Iterator[str]:
    for path in read_submissions(usage):
        record = None
        with suppress(QPUError):
            record = read_record(path)
        if (
            record is not None
            and record.state is RecordState.SUBMITTED
            and record.step.startswith(_prefix(stage))
        ):
            yield record.step


def _prefix(stage: Stage) -> str:
    return f"stage {stage.name}, warm-up "
