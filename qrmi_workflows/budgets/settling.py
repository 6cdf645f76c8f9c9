"""Settling what is reserved: by the process that ran the task, or, if it has died, by the journal.

The journal decides. A reservation's id is in the task's record before the request to submit it goes
out. So if the record does not name it, nothing was submitted under it; if it does, the record's
state says how far the task has come. A reservation is replaced by what was spent in one write, so
it is never settled and given back, or twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from qrmi_workflows.budgets.book import Book, Reservation, Spent
from qrmi_workflows.budgets.ledger import NO_ACCOUNT, UserLedger
from qrmi_workflows.errors import BudgetError, ConfigError, JournalError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.crashes import has_crashed
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.record_files import read_record
from qrmi_workflows.state.locks import is_locked

__all__ = [
    "outcome",
    "settle_all_dead",
    "settle_dead",
    "settle_dead_in",
    "settle_left",
    "settle_task",
]

logger = logging.getLogger(__name__)

_ENDED = (RecordState.COMPLETED, RecordState.FAILED, RecordState.MOVED)
_JOURNAL = 3  # of a record's parents: JOURNAL/open/DIGITS/STEP/RECORD


def settle_task(record: TaskRecord, spent: Amount | None = None) -> None:
    """Settle what is reserved for a task, as far as its record says that the task has ended.

    If the ledger cannot be written, that is logged; a later process settles it by the journal.

    Args:
        record: The task's record.
        spent: What the task has taken, whatever the record's state is. If its seconds are not
            known, those that were reserved are spent.
    """
    cost = record.cost
    if cost is None or cost.reservation is None or cost.ledger is None:
        return
    path = Path(cost.ledger)
    try:
        books = UserLedger.of_book(path)
        account = _account(path)
        amount = _spent(spent) if spent is not None else outcome(cost.reservation, record)
        if amount is None:
            return
        with books.locked():
            book = books.read(account)
            reserved = book.open.get(cost.reservation)
            if spent is not None and spent.seconds is None and reserved is not None:
                amount = replace(amount, milliseconds=reserved.amount.milliseconds)
            if book.settle(cost.reservation, amount):
                books.write(account, book)
    except (BudgetError, ConfigError, OSError, ValueError) as error:
        logger.warning("not settled in the budgets yet: %s", error)


def outcome(reservation: str, record: TaskRecord) -> Spent | None:
    """Return what a reserved task has taken, as its record says; `None` if it may yet run.

    Args:
        reservation: The reservation's id.
        record: The record of the task.
    """
    cost = record.cost
    if cost is None or cost.reservation != reservation or record.state is RecordState.CLAIMED:
        return Spent()  # nothing was submitted under it
    if record.state is RecordState.COMPLETED:
        return _spent(cost.spent or cost.estimate)
    if record.state in (RecordState.FAILED, RecordState.MOVED):
        return _spent(cost.spent or Amount())
    return None


def settle_left(book: Book, record: TaskRecord, path: Path) -> None:
    """Settle what an earlier run has reserved for a task that this process is about to reserve for.

    Args:
        book: The book.
        record: The task's record, which this process holds.
        path: The record's file.
    """
    for reservation, each in list(book.open.items()):
        if each.record == str(path):
            book.settle(reservation, outcome(reservation, record) or Spent())


def settle_dead(books: Mapping[str | None, Book]) -> Iterator[str | None]:
    """Settle what is reserved for tasks that no living process runs, as the journal says.

    Args:
        books: A user's books, which change; the caller holds their lock, and writes them.

    Yields:
        The account of each book that has changed.
    """
    for account, book in books.items():
        changed = False
        for reservation, each in list(book.open.items()):
            amount = _outcome_of_dead(reservation, each)
            if amount is not None:
                changed |= book.settle(reservation, amount)
        if changed:
            yield account


def settle_dead_in(books: UserLedger) -> bool:
    """Settle what a user's dead processes have reserved; the caller holds the lock of the books.

    Returns:
        Whether there was any.

    Raises:
        BudgetError: A book could not be written.
    """
    try:
        found = books.all()
    except ValueError:
        return False  # whoever needs the book reports it
    changed = list(settle_dead(found))
    for account in changed:
        books.write(account, found[account])
    books.tidy()
    return bool(changed)


def settle_all_dead(books: UserLedger) -> None:
    """Settle what dead processes of this user have reserved; a failure is only logged."""
    if not books.folder.is_dir():
        return
    try:
        with books.locked():
            settle_dead_in(books)
    except BudgetError as error:
        logger.warning("%s", error)


def _outcome_of_dead(reservation: str, each: Reservation) -> Spent | None:
    """Return what a task has taken; `None` if it may yet run, or a living process has it."""
    path = Path(each.record)
    if len(path.parents) <= _JOURNAL:  # edited by hand: no journal has this record
        return None if each.owner.is_alive() else each.amount
    try:
        record, is_archived = read_record(path), False
        if record is None:
            record, is_archived = _archived(path), True
        if record is None:
            return _outcome_of_lost(path, each)
        amount = outcome(reservation, record)
        names_it = record.cost is not None and record.cost.reservation == reservation
        if is_archived:
            return each.amount if amount is None else amount
        if names_it and record.state in _ENDED:
            return amount
        if is_locked(path.parent / f"{record.run}.run") and not has_crashed(record.owner):
            amount = None
    except (JournalError, OSError, ValueError) as error:
        logger.warning("not settled in the budgets: %s: %s", path, error)
        return None
    return amount


def _archived(path: Path) -> TaskRecord | None:
    """Read the record of a task whose step was archived."""
    journal = path.parents[_JOURNAL]
    for found in journal.glob(f"archived/*/{path.parent.name}-*/{path.name}"):
        record = read_record(found)
        if record is not None:
            return record
    return None


def _outcome_of_lost(path: Path, each: Reservation) -> Spent | None:
    """Return what a task has taken whose record was deleted: at worst, what was reserved."""
    if (
        each.owner.is_alive() or not path.parents[_JOURNAL].is_dir()
    ):  # a file system that is not mounted
        return None
    return each.amount


def _spent(amount: Amount) -> Spent:
    return Spent(shots=amount.shots or 0, milliseconds=amount.milliseconds or 0)


def _account(path: Path) -> str | None:
    return None if path.stem == NO_ACCOUNT else path.stem
