"""What the tasks of one lease may spend: reserved before they are submitted."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.budgets.book import Reservation, Spent
from qrmi_workflows.budgets.estimates import FEWEST, Sample, estimate_task
from qrmi_workflows.budgets.history import read_history
from qrmi_workflows.budgets.ledger import Ledger, this_user, used
from qrmi_workflows.budgets.limits import (
    Limit,
    applicable,
    period_end,
    read_limits,
    render_amount,
)
from qrmi_workflows.budgets.settling import settle_dead_in, settle_left
from qrmi_workflows.errors import BudgetError
from qrmi_workflows.journal.cost import Amount, Cost
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.payloads import Payload
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.process import Owner

__all__ = ["Allowance", "Usage", "find_usage", "today"]

logger = logging.getLogger(__name__)

_BY_SITE = "task_seconds of site.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of a budget is used.

    Attributes:
        limit: The budget.
        spent: How much was spent.
        reserved: How much is reserved for tasks that have not ended.
        day: The day for whose period this holds.
    """

    limit: Limit
    spent: int
    reserved: int
    day: str

    @property
    def left(self) -> int:
        """How much is left; less than nothing if tasks have taken more than was expected."""
        return self.limit.amount - self.spent - self.reserved

    @property
    def ends(self) -> str | None:
        """When the period ends, ISO 8601 in UTC."""
        return period_end(self.limit.per, self.day)


@dataclass(slots=True, kw_only=True)
class Allowance:
    """What the tasks of one lease may spend.

    Attributes:
        folder: The folder of the ledger.
        qpu: The QPU's name.
        account: The account of this process's job, if any.
        own: The budgets of its job and its stage.
        has_site_limits: Whether the folder is the site's, and has its budgets.
        task_seconds: How many seconds a task counts as whose seconds are not known, if the site
            says so. Otherwise it reserves all that is left.
        members_of: Returns the users who may charge jobs to an account (`account_members`).
    """

    folder: Path
    qpu: str
    account: str | None
    own: tuple[Limit, ...] = ()
    has_site_limits: bool = True
    task_seconds: float | None = None
    members_of: Callable[[str], frozenset[str] | None] = lambda _account: None
    _user: str = field(default_factory=this_user)
    _history: list[Sample] | None = None
    _has_warned: bool = False
    _members: frozenset[str] | None = None

    def estimate(self, payload: Payload, resource_type: str, identity: str) -> Amount:
        """Return what a task is expected to take, from earlier tasks if there are enough."""
        if all(limit.unit == "shots" for limit in self.limits()):
            return estimate_task(payload, resource_type)
        history = self._history
        if history is None:
            history = read_history(self.qpu, identity)
        estimate = estimate_task(payload, resource_type, history)
        if estimate.seconds is not None:
            self._history = history  # read once: a lease may have many tasks
        elif self.task_seconds is not None:
            return replace(estimate, seconds=self.task_seconds, origin=_BY_SITE)
        return estimate

    def reserve(self, entry: Entry, estimate: Amount) -> bool:
        """Reserve for a task what it is expected to take, and note that in its entry.

        Nothing is written to the journal; the caller does so before the task is submitted.

        Returns:
            Whether it is all that is left of a budget, because its duration is not known.

        Raises:
            BudgetError: Less than that is left of a budget, or the ledger cannot be used.
            ConfigError: The site's budgets cannot be read.
        """
        limits = self.limits()
        if not limits:
            return False
        ledger = Ledger(self.folder)
        if self.account is not None and any(limit.scope == "account" for limit in limits):
            self._members = self.members_of(self.account)
            if self._members is not None and self._user.lower() not in self._members:
                raise _no_member(self._user, self.account)
            with ledger.locked():
                self._reserve(ledger, limits, entry, estimate)
        else:
            self._reserve(ledger, limits, entry, estimate)
        return estimate.milliseconds is None and any(limit.unit != "shots" for limit in limits)

    def limits(self) -> tuple[Limit, ...]:
        """Return the budgets that apply now."""
        site = read_limits(self.folder) if self.has_site_limits else ()
        ours = applicable(site, user=self._user, account=self.account, qpu=self.qpu)
        return ours + self.own

    def _reserve(
        self, ledger: Ledger, limits: Sequence[Limit], entry: Entry, estimate: Amount
    ) -> None:
        books = ledger.user(self._user)
        path = entry.path.absolute()
        needed = Spent(shots=estimate.shots or 0, milliseconds=estimate.milliseconds or 0)
        in_shots = [limit for limit in limits if limit.unit == "shots"]
        if in_shots and estimate.shots is None:  # nor would anybody know it afterwards
            raise _uncountable(in_shots[0])
        with books.locked():
            day = today()
            try:
                book = books.read(self.account)
            except ValueError as error:
                raise BudgetError(
                    f"{books.path(self.account)}: not a ledger: {error}. Ask your administrators "
                    "to correct or remove it."
                ) from error
            before = len(book.open)
            settle_left(book, entry.record, path)
            if len(book.open) != before:
                books.write(self.account, book)
            lacking = self._find_lacking(ledger, limits, needed, day)
            if lacking is not None and settle_dead_in(books):
                lacking = self._find_lacking(ledger, limits, needed, day)
                book = books.read(self.account)
            if lacking is not None:
                raise _refusal(lacking, needed, estimate)
            if estimate.milliseconds is None:
                needed = replace(needed, milliseconds=self._least_left(ledger, limits, day))
            reservation = uuid.uuid4().hex
            own = {limit.scope: limit.name for limit in self.own}
            book.open[reservation] = Reservation(
                day=day,
                qpu=self.qpu,
                amount=needed,
                record=str(path),
                owner=Owner.this_process(this_job()),
                job=own.get("job"),
                stage=own.get("stage"),
            )
            book.compact(day)
            books.write(self.account, book)
        ledger_path = str(books.path(self.account))
        entry.expect(Cost(estimate=estimate, reservation=reservation, ledger=ledger_path))

    def _find_lacking(
        self, ledger: Ledger, limits: Sequence[Limit], needed: Spent, day: str
    ) -> Usage | None:
        """Return the first budget of which too little is left."""
        for limit in limits:
            found = find_usage(ledger, limit, self._user, day, self._members)
            # Of an amount that is not known, something must be left at least.
            if found.left < max(1, needed.of(limit.unit)):
                return found
        return None

    def _least_left(self, ledger: Ledger, limits: Sequence[Limit], day: str) -> int:
        """Return all that is left of the budgets in seconds, for a task of unknown duration."""
        found = [
            find_usage(ledger, limit, self._user, day, self._members)
            for limit in limits
            if limit.unit != "shots"
        ]
        if not found:
            return 0
        least = min(found, key=lambda usage: usage.left)
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "QPU %s: how long this task takes is not known until %d like it were measured; "
                "until it ends it reserves all that is left of the budget of %s: %s",
                *(self.qpu, FEWEST, least.limit.describe()),
                render_amount("seconds", least.left),
            )
        return least.left


def find_usage(
    ledger: Ledger, limit: Limit, user: str, day: str, members: frozenset[str] | None = None
) -> Usage:
    """Return how much of a budget is used in the period of a day; see `used`."""
    spent, reserved = used(ledger, limit, user, day, members)
    return Usage(limit=limit, spent=spent, reserved=reserved, day=day)


def today() -> str:
    """Return the day, in UTC."""
    return datetime.now(UTC).date().isoformat()


def _no_member(user: str, account: str) -> BudgetError:
    return BudgetError(
        f"the task was not submitted: user {user!r} may not charge jobs to account {account!r}, "
        "whose budget limits it. Submit the job under an account of yours (`--account`), or ask "
        "your administrators to add you.",
        f"account {account}",
    )


def _uncountable(limit: Limit) -> BudgetError:
    return BudgetError(
        "the task was not submitted: it does not say how many shots it takes, which the budget of "
        f"{limit.describe()} limits. State the number of shots, if its program has one; otherwise "
        "use a QPU without a budget in shots.",
        limit.describe(),
        unit="shots",
    )


def _refusal(lacking: Usage, needed: Spent, estimate: Amount) -> BudgetError:
    limit = lacking.limit
    amount = needed.of(limit.unit)
    of_qpu = f" on QPU {limit.qpu!r}" if limit.qpu else ""
    period = "" if limit.per == "total" else f" a {limit.per}"
    limit_text, spent, reserved, left = (
        render_amount(limit.unit, each)
        for each in (limit.amount, lacking.spent, lacking.reserved, max(0, lacking.left))
    )
    running = f"; reserved for running tasks: {reserved}" if lacking.reserved else ""
    return BudgetError(
        f"the task was not submitted: it would take {_render_needed(limit, amount, estimate)}, but "
        f"{left} are left of the budget of {limit.describe()}{of_qpu} (limit: {limit_text}"
        f"{period}; spent: {spent}{running}). {_remedies(lacking, amount)}",
        limit.describe(),
        max(0, lacking.left) / (1 if limit.unit == "shots" else 1000),
        amount / (1 if limit.unit == "shots" else 1000) if amount else None,
        limit.unit,
        lacking.ends,
    )


def _render_needed(limit: Limit, amount: int, estimate: Amount) -> str:
    if limit.unit == "shots":
        return render_amount(limit.unit, amount)
    if estimate.seconds is None:
        return f"an unknown number of seconds (not known until {FEWEST} tasks were measured)"
    return render_amount(limit.unit, amount) + (f" ({estimate.origin})" if estimate.origin else "")


def _remedies(lacking: Usage, amount: int) -> str:
    limit = lacking.limit
    ways = []
    if lacking.reserved:
        ways.append("run it again when the running tasks have ended")
    if amount:
        ways.append("ask for fewer shots")
    if limit.scope in ("user", "account"):
        command = f"qpu budget set {limit.scope}:{limit.name} …"
        ways.append(f"ask your administrators for more (`{command}`)")
    else:
        ways.append(f"give the {limit.scope} more (`--budget`, budget=, $QPU_BUDGET)")
    if lacking.ends is not None:
        ways.append(f"wait until {lacking.ends}, when it starts again")
    *first, last = ways
    text = f"{', '.join(first)}, or {last}" if first else last
    return f"{text[0].upper()}{text[1:]}."
