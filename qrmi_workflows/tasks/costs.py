"""What tasks cost: estimated and reserved before they are submitted, settled at their end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from qrmi_workflows.budgets.estimates import estimate_task
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.journal.cost import Amount, Cost
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.payloads import Payload
from qrmi_workflows.tasks.usage import TaskTimes, note_report
from qrmi_workflows.vendors.metering import count_shots, reported_seconds
from qrmi_workflows.vendors.registry import load_vendor

__all__ = [
    "Allowance",
    "CostedRun",
    "charge",
    "expect",
    "record_report",
    "record_usage",
    "settle",
    "took",
    "unseen",
]


class Allowance(Protocol):
    """What the tasks of a lease may spend."""

    def estimate(self, payload: Payload, resource_type: str, identity: str) -> Amount:
        """Return what a task is expected to take."""

    def reserve(self, entry: Entry, estimate: Amount) -> bool:
        """Reserve that, and note it in the task's entry.

        Returns:
            Whether it is all that is left of a budget, because its duration is not known.

        Raises:
            BudgetError: Too little is left.
        """


class CostedRun(Protocol):
    """What `TaskRun` has, which imports this module."""

    resource: QRMIResource
    resource_type: str
    identity: str
    payload: Payload
    task_id: str | None
    allowance: Allowance | None
    overhead: float
    _times: TaskTimes
    _is_expected: bool
    _reserves_all: bool
    _reported: float | None

    @property
    def usage(self) -> Callable[[], Path | None]:
        """How to find the usage file of the lease."""


def expect(run: CostedRun, entry: Entry) -> None:
    """Estimate what a task takes, and reserve it; once for each submission.

    Raises:
        BudgetError: Too little is left of a budget.
    """
    if run._is_expected:
        return
    if run.allowance is None:
        entry.expect(Cost(estimate=estimate_task(run.payload, run.resource_type)))
    else:
        estimate = run.allowance.estimate(run.payload, run.resource_type, run.identity)
        entry.expect(Cost(estimate=estimate))
        run._reserves_all = run.allowance.reserve(entry, estimate)
    run._is_expected = True


def took(run: CostedRun, entry: Entry, state: TaskState) -> Amount:
    """Return what a task has taken that has ended in this state.

    QRMI passes on no bill (see `lease.bill`). So the time is what the result reports, else what
    this process has observed. If another one has submitted the task, and this one has missed its
    start, it is at least what was expected.
    """
    cost = entry.record.cost
    estimate = Amount() if cost is None else cost.estimate
    is_completed = state is TaskState.COMPLETED
    shots = estimate.shots if is_completed else 0
    if is_completed and run._reported is not None:
        seconds = run._reported + run.overhead
        return Amount(shots=shots, seconds=seconds, origin="reported by the vendor")
    observed = run._times.seconds_on_qpu()
    seconds = 0.0 if observed is None else observed + run.overhead
    if run._times.is_partial and (estimate.seconds or 0.0) >= seconds:
        return Amount(shots=shots, seconds=estimate.seconds, origin=estimate.origin)
    return Amount(shots=shots, seconds=seconds, origin="observed")


def unseen(entry: Entry) -> Amount:
    """Return what a cancelled task has taken whose time on the QPU nobody saw: as was expected."""
    cost = entry.record.cost
    estimate = Amount() if cost is None else cost.estimate
    return Amount(shots=0, seconds=estimate.seconds, origin=estimate.origin)


def settle(entry: Entry, spent: Amount | None = None) -> None:
    """Settle what is reserved for a task, if it has ended.

    Args:
        entry: The task's place in the journal.
        spent: What it has taken, whatever its record says.
    """
    cost = entry.record.cost
    if cost is None or cost.reservation is None:
        return
    from qrmi_workflows.budgets.settling import settle_task  # few tasks have a budget

    settle_task(entry.record, spent)


def charge(run: CostedRun, entry: Entry) -> None:
    """Settle with what was expected for a task that the vendor may have accepted, or forgotten.

    It is about to be submitted again, which is reserved for anew.
    """
    cost = entry.record.cost
    settle(entry, Amount() if cost is None else cost.estimate)
    run._is_expected = False


def record_usage(run: CostedRun, state: TaskState) -> None:
    """Record under the lease that a task has ended, and how long it was on the QPU."""
    if (path := run.usage()) is None:
        return
    shots = count_shots(load_vendor(run.payload.vendor), run.payload.content)
    qpu = run.resource.resource_id()
    usage = run._times.usage(qpu, str(run.task_id), state, shots=shots)
    with suppress(OSError):
        usage.append_to(path)


def record_report(run: CostedRun, text: str) -> None:
    """Note for how long the QPU executed the task, if its result says so."""
    run._reported = reported_seconds(load_vendor(run.payload.vendor), text)
    if (path := run.usage()) is not None and run._reported is not None:
        with suppress(OSError):
            note_report(path, str(run.task_id), run._reported)
