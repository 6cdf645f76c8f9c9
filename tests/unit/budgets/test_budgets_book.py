"""A book: what counts in which period, and what no book may say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qrmi_workflows.budgets.book import Book, Reservation, Spent
from qrmi_workflows.budgets.limits import Limit
from qrmi_workflows.budgets.settling import settle_dead
from qrmi_workflows.state.process import Owner

MONTH = Limit(scope="user", name="ada", unit="shots", amount=10, per="month")


def reservation(day: str = "2026-11-26", shots: int = 5, **values: str) -> Reservation:
    owner = Owner(host="h", boot="b", pid=1, started=1)
    amount = Spent(shots=shots, milliseconds=10 * shots)
    return Reservation(day=day, qpu="q", amount=amount, record="/r.json", owner=owner, **values)


def test_a_reservation_is_settled_once():
    book = Book(open={"r": reservation(job="7", stage="s")})
    assert book.settle("r", Spent(shots=3))
    assert not book.settle("r", Spent(shots=3))
    assert (book.spent(MONTH, "2026-11-01"), book.reserved(MONTH, "2026-11-01")) == (3, 0)
    for scope, name in (("job", "7"), ("stage", "s")):
        own = Limit(scope=scope, name=name, unit="shots", amount=1)
        assert book.spent(own, "2030-01-01") == 3


def test_a_reservation_counts_in_its_own_period_qpu_and_unit():
    book = Book(open={"a": reservation(), "b": reservation("2026-10-31", 7)})
    assert book.reserved(MONTH, "2026-11-01") == 5
    per_day = Limit(scope="user", name="ada", unit="shots", amount=1, per="day")
    assert book.reserved(per_day, "2026-11-27") == 0
    total = Limit(scope="user", name="ada", unit="seconds", amount=1, per="total")
    assert book.reserved(total, "2026-11-27") == 120
    other = Limit(scope="user", name="ada", unit="shots", amount=1, qpu="other")
    assert book.reserved(other, "2026-11-27") == 0


def test_old_days_are_joined_and_still_count():
    book = Book()
    for day in ("2026-09-01", "2026-09-30", "2026-10-01", "2026-11-26"):
        book.open["r"] = reservation(day)
        book.settle("r", Spent(shots=1))
    book.compact("2026-11-26")
    assert sorted(book.days) == ["2026-09", "2026-10-01", "2026-11-26"]
    total = Limit(scope="user", name="ada", unit="shots", amount=1, per="total")
    assert book.spent(total, "2026-11-26") == 4
    assert book.spent(MONTH, "2026-09-12") == 2
    january = Book(days={"2025-12-31": {"q": Spent(shots=1)}, "2025-11-30": {"q": Spent(shots=1)}})
    january.compact("2026-01-01")
    assert sorted(january.days) == ["2025-11", "2025-12-31"]


def test_a_book_does_not_grow_with_the_number_of_its_users_jobs():
    """But a job that still settles tasks, or has reserved for one, keeps its budget."""
    book = Book(open={"waiting": reservation(job="idle")})
    book.own["job"]["idle"] = Spent(shots=1)
    for number in range(5000):
        book.open["r"] = reservation(job=f"{number}")
        book.settle("r", Spent(shots=1))
        book.open["r"] = reservation(job="busy")
        book.settle("r", Spent(shots=1))
        book.compact("2026-11-26")

    assert book.own["job"]["busy"] == Spent(shots=5000)
    assert book.own["job"]["idle"] == Spent(shots=1)
    assert book.own["job"]["4999"] == Spent(shots=1)
    assert len(book.own["job"]) <= 2001
    assert book.days["2026-11-26"]["q"] == Spent(shots=10_000)


def test_a_book_reads_back_as_it_was_written():
    book = Book(open={"r": reservation(job="7")}, days={"2026-11": {"q": Spent(shots=1)}})
    book.own["job"]["7"] = Spent(milliseconds=5)
    assert Book.from_json(book.to_json()) == book


@pytest.mark.parametrize("amount", [-1, 1.5, True, None, "1", float("nan"), 10**30])
def test_no_book_gives_budget_back(amount):
    """A book of another user counts for the account of both."""
    document = json.loads(Book(days={"2026-11": {"q": Spent(shots=1)}}).to_json())
    document["days"]["2026-11"]["q"]["shots"] = amount
    with pytest.raises(ValueError, match="amount"):
        Book.from_json(json.dumps(document))
    document = json.loads(Book(open={"r": reservation()}).to_json())
    document["open"]["r"]["amount"]["milliseconds"] = amount
    with pytest.raises(ValueError, match="amount"):
        Book.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"format": "x"}', "[" * 100_000,
     Book().to_json().replace(":1,", ":2,"), Book().to_json().replace('"days":{}', '"days":[]'),
     Book().to_json().replace('"days":{}', '"days":{"../x":{}}'),
     Book().to_json().replace('"open":{}', '"open":{"r":{}}')],
)  # fmt: skip
def test_what_is_not_a_book_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Book.from_json(text)


@pytest.mark.parametrize("values", [{"job": []}, {"stage": {}}, {"qpu": 3}, {"record": None}])
def test_a_reservation_with_a_value_of_another_type_is_refused(values):
    document = json.loads(Book(open={"r": reservation()}).to_json())
    document["open"]["r"] |= values
    with pytest.raises(ValueError, match="no text"):
        Book.from_json(json.dumps(document))


@pytest.mark.parametrize("record", ["", "r.json", "/r.json", "/a/b/c/\0.json"])
def test_a_reservation_of_no_journals_record_stops_nothing(record):
    """Such as one in a book that was edited by hand."""
    book = Book(open={"r": replace(reservation(), record=record)})

    changed = list(settle_dead({None: book}))

    assert (changed, list(book.open)) in (([], ["r"]), ([None], []))
