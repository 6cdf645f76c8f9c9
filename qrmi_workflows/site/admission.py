"""Admission by state: whether a QPU's jobs may start, by its vendor's answers and by hand.

`judge` decides from one answer; `apply` has the scheduler keep the jobs of all QPUs that are away
pending, and those of no others. Whatever was interrupted, the next run makes up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qrmi_workflows.client.states import Answer
from qrmi_workflows.config.notices import Notice, read_notices
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.admission import Admission, carry_out
from qrmi_workflows.site.notice_board import Known, NoticeBoard, Seen

__all__ = ["Applied", "apply", "judge"]


def judge(answer: Answer | None, before: Seen | None, *, now: float, patience: float) -> Seen:
    """Return what is known of a QPU after its vendor was asked.

    A vendor that does not answer has not said that the QPU is offline: what was known before stays,
    for a while. After that, a job could not acquire the QPU anyway.

    Args:
        answer: The vendor's answer; `None` if there was none.
        before: What was known before; `None` if the vendor was never asked.
        now: The time.
        patience: For how many seconds the vendor may be silent.
    """
    if answer is not None and answer.is_operational:
        return Seen(answered=now)
    if answer is not None:
        reason = f" ({answer.reason})" if answer.reason else ""
        away = f"the vendor reports that it is {answer.state}{reason}"
        since = before.since if before is not None and before.away is not None else now
        return Seen(answered=now, away=away, since=since)
    if before is None:
        return Seen(answered=now, is_silent=True)
    if before.away is None and now - before.answered >= patience:
        away = f"the vendor has not answered for {patience:g} s"
        return Seen(answered=before.answered, away=away, since=now, is_silent=True)
    return replace(before, is_silent=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What has been done at the scheduler.

    Attributes:
        notices: The QPUs that are away, and why.
        changes: What was changed, as sentences.
        errors: What could not be changed, and why, by QPU.
        unsupported: The QPUs whose jobs cannot be kept pending, and why.
        ways: By which means the jobs of each QPU that is away are kept pending.
    """

    notices: Mapping[str, Notice]
    changes: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    ways: Mapping[str, str] = field(default_factory=dict)


def apply(
    board: NoticeBoard, known: Known, site: SitePolicy, admission: Admission | None
) -> Applied:
    """Have the scheduler keep the jobs of the QPUs that are away pending, and no others.

    To be called while `board.changed()` keeps others away.

    Raises:
        ConfigError: A file of notices cannot be understood; nothing was changed.
        SchedulerError: The scheduler did not answer.
        OSError: The files could not be written.
    """
    notices = read_notices(site, strict=True)  # else QPUs in maintenance would be opened
    if admission is None:
        board.save(known)
        reason = "this scheduler cannot keep its jobs pending"
        return Applied(notices=notices, unsupported=dict.fromkeys(notices, reason))
    try:
        plan = admission.plan(notices.keys(), site, known.marks)
    except SchedulerError:
        board.save(known)  # the vendors' answers are not lost
        raise
    # Both: a process that is killed here has or has not made the changes.
    board.save(Known(seen=known.seen, marks=known.marks | plan.marks))
    errors, changes = {}, []
    for change in plan.changes:
        if (problem := carry_out(change)) is None:
            changes.append(change.text)
        else:
            errors[change.qpu] = f"cannot {change.text}: {problem}"
    if not errors:
        board.save(Known(seen=known.seen, marks=plan.marks))
    return Applied(
        notices=notices,
        changes=tuple(changes),
        errors=errors,
        unsupported=plan.unsupported,
        ways=plan.ways,
    )
