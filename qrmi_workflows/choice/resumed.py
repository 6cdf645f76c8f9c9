"""Send a step to the QPU that has its tasks: on another one, they would be paid for again."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.choose import Choice, choose
from qrmi_workflows.choice.verdict import is_asked_for
from qrmi_workflows.config.constraints import QPUConstraint
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.journal.record import RecordState, TaskRecord

__all__ = ["choose_for_step", "find_resumed", "has_been_sent"]

logger = logging.getLogger(__name__)

_KEPT = (RecordState.INTENT, RecordState.SUBMITTED, RecordState.COMPLETED)


def choose_for_step(
    constraints: Sequence[QPUConstraint],
    asker: Asker,
    records: Iterable[TaskRecord],
    *,
    wait: float = 0.0,
    avoid: Collection[str] = (),
    stop: threading.Event | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Choice, ...]:
    """Choose a QPU for each constraint: that which has the step's tasks, or as `choose` does.

    Args:
        constraints: What is asked for.
        asker: Who asks, and for what.
        records: The tasks that earlier attempts at the step have left (`Journal.step(…).records`).
        wait: As `choose` takes it.
        avoid: As `choose` takes it.
        stop: As `choose` takes it.
        environ: The environment.

    Raises:
        QPUError: See `choose`.
    """
    resumed = find_resumed(constraints, records)
    # By name: whatever its queue is by now, and whether it still meets the conditions.
    wanted = [
        each if name is None else QPUConstraint(names=(name,))
        for each, (name, _) in zip(constraints, resumed, strict=True)
    ]
    found = choose(wanted, asker, wait=wait, avoid=avoid, stop=stop, environ=environ)
    return tuple(
        choice if name is None else replace(choice, request=str(constraint), why=why)
        for choice, constraint, (name, why) in zip(found, constraints, resumed, strict=True)
    )


def has_been_sent(record: TaskRecord) -> bool:
    """Return whether a task's vendor may have it, or has completed it."""
    return record.state in _KEPT


def find_resumed(
    constraints: Sequence[QPUConstraint], records: Iterable[TaskRecord]
) -> list[tuple[str | None, str]]:
    """Return, for each constraint, the QPU that has tasks of the step, and why it is taken.

    The name is `None` if no QPU that the constraint names has any, or nothing is left to choose.
    """
    tasks = Counter(record.qpu for record in records if has_been_sent(record))
    order = sorted(tasks, key=lambda qpu: (-tasks[qpu], qpu))
    used = {each.name for each in constraints if each.name is not None}
    found: list[tuple[str | None, str]] = []
    for constraint in constraints:
        name = None
        if constraint.name is None:
            name = next((q for q in order if q not in used and _goes_back(q, constraint)), None)
        if name is None:
            found.append((None, ""))
            continue
        used.add(name)
        found.append((name, f"it has {tasks[name]} task(s) of an earlier attempt at the step"))
    return found


def _goes_back(qpu: str, constraint: QPUConstraint) -> bool:
    """Return whether a step goes back to a QPU that has tasks of it.

    Nothing emulated has been paid for, so it does not keep a step from a real QPU that is back.
    """
    if is_emulated(qpu) and not all(map(is_emulated, constraint.names)):
        return False
    return is_asked_for(qpu, constraint)
