"""Jobs that held a QPU: lease records joined with the scheduler's own accounting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from qrmi_workflows.schedulers.base import JobAccount
from qrmi_workflows.site.accounting import Group, Usage
from qrmi_workflows.site.anomalies import Anomaly

__all__ = ["BY", "JobUse", "find_anomalies", "join"]

BY = ("cluster", "job", "qpu", "user", "account")
"""What the usage to be joined is grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUse:
    """A job's use of one QPU.

    Attributes:
        cluster: The job's cluster, if known.
        job: Its id; empty for leases outside of jobs.
        qpu: The QPU.
        user: Its user.
        account: The account in its lease records; that of the scheduler, if it has none.
        known: What the scheduler's accounting has about it; `None` if it has nothing.
        usage: The usage of its leases.
    """

    cluster: str
    job: str
    qpu: str
    user: str
    account: str
    known: JobAccount | None
    usage: Usage

    @property
    def qpu_seconds(self) -> float | None:
        """For how many seconds, times units, the scheduler counts the QPU as used by the job."""
        return None if self.known is None else self.known.elapsed * self.known.qpus[self.qpu]

    def as_dict(self) -> dict[str, object]:
        """Return it as plain data, with units in the names."""
        usage, known = Group((), self.usage).as_dict(()), self.known
        of_scheduler = {
            "state": None if known is None else known.state,
            "created": None if known is None else _iso(known.created),
            "started": None if known is None else _iso(known.started),
            "ended": None if known is None or known.ended is None else _iso(known.ended),
            "elapsed_seconds": None if known is None else known.elapsed,
            "qpu_seconds": self.qpu_seconds,
        }
        return {**{name: getattr(self, name) for name in BY}, **of_scheduler, **usage}


def join(groups: Iterable[Group], accounts: Iterable[JobAccount]) -> list[JobUse]:
    """Join usage with what the accounting knows of the same jobs, in the order of the jobs.

    Args:
        groups: Usage, grouped by `BY`.
        accounts: The scheduler's jobs; those without a lease are part of the outcome, too.
    """
    known = {(each.id, qpu): each for each in accounts for qpu in each.qpus}
    uses = []
    for group in groups:
        cluster, job, qpu, user, account = group.keys
        found = known.get((job, qpu))
        if found is not None and not _is_of(found, user, cluster):
            found = None
        uses.append(_use(cluster, job, qpu, user, account, found, group.usage))
    leased = {(use.job, use.qpu) for use in uses if use.known is not None}
    for (job, qpu), each in known.items():
        if (job, qpu) not in leased:
            uses.append(_use(each.cluster, job, qpu, each.user, each.account, each, Usage()))
    return sorted(uses, key=lambda use: (use.cluster, len(use.job), use.job, use.qpu))


def find_anomalies(uses: Iterable[JobUse]) -> list[Anomaly]:
    """Find ended jobs that held a QPU without a lease, and accounts that the records have wrong."""
    found = []
    for use in uses:
        known = use.known
        if known is None or known.ended is None:
            continue
        if not use.usage.leases:
            what = f"it held the QPU for {known.elapsed:.0f} s and has left no lease record."
            remedy = (
                "Ask for a QPU in jobs that use it alone. If it has used the QPU, find out why it "
                "left no record."
            )
            found.append(_anomaly("no-lease", use, known, known.elapsed, what, remedy))
        elif use.account and use.account != known.account:
            what = f"its record names the account {use.account!r}, the scheduler {known.account!r}."
            remedy = "Charge the scheduler's account: users write their own records."
            found.append(_anomaly("account", use, known, use.usage.held, what, remedy))
    return found


def _is_of(known: JobAccount, user: str, cluster: str) -> bool:
    return known.user == user and (not cluster or not known.cluster or known.cluster == cluster)


def _use(
    cluster: str,
    job: str,
    qpu: str,
    user: str,
    account: str,
    known: JobAccount | None,
    usage: Usage,
) -> JobUse:
    return JobUse(
        cluster=cluster,
        job=job,
        qpu=qpu,
        user=user,
        account=account or ("" if known is None else known.account),
        known=known,
        usage=usage,
    )


def _anomaly(
    kind: str, use: JobUse, known: JobAccount, seconds: float, what: str, remedy: str
) -> Anomaly:
    return Anomaly(
        kind=kind,
        user=use.user,
        qpu=use.qpu,
        job=use.job,
        lease="",
        released=_iso(known.ended or known.started),
        seconds=round(seconds, 3),
        what=what,
        remedy=remedy,
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
