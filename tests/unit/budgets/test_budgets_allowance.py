"""Reserving for a task, above all for one of which nobody knows how much it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.budgets.allowance import Allowance, Usage, find_usage, today
from qrmi_workflows.budgets.ledger import Ledger, this_user
from qrmi_workflows.budgets.limits import Limit, write_limits
from qrmi_workflows.budgets.settling import settle_task
from qrmi_workflows.errors import BudgetError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.payloads import Payload

MINUTE = Limit(scope="user", name=this_user(), unit="seconds", amount=60_000, per="day")
HOUR = Limit(scope="account", name="chem", unit="seconds", amount=3_600_000)
SHOTS = Limit(scope="user", name=this_user(), unit="shots", amount=1000)
UNKNOWN = Amount(shots=50)
PULSES = Payload(vendor="pasqal", content={"sequence": {"register": []}, "job_runs": 50})


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    Ledger(tmp_path / "budgets").prepare()
    write_limits(tmp_path / "budgets", [MINUTE, HOUR])
    return tmp_path / "budgets"


@pytest.fixture
def allowance(site) -> Allowance:
    return Allowance(folder=site, qpu="FRESNEL", account="chem")


def task(allowance: Allowance, estimate: Amount, name: str) -> Entry:
    entry, _ = Journal().step(name).claim("d" * 64, qpu="FRESNEL", program="sequence")
    allowance.reserve(entry, estimate)
    entry.intend()
    entry.submitted(name)
    return entry


def end(entry: Entry, seconds: float) -> None:
    entry.failed("no", retryable=True, spent=Amount(shots=50, seconds=seconds))
    settle_task(entry.record)


def usage(site: Path, limit: Limit = MINUTE) -> tuple[float, float]:
    found: Usage = find_usage(Ledger(site), limit, this_user(), today())
    return found.spent / 1000, found.reserved / 1000


def test_a_task_of_unknown_duration_reserves_all_that_is_left(site, allowance, caplog):
    """Of the budget of which the least is left; otherwise any number could run at once."""
    first = task(allowance, UNKNOWN, "a")
    assert usage(site) == (0, 60)
    assert usage(site, HOUR) == (0, 60)
    assert "not known until 3 like it were measured" in caplog.text
    assert f"all that is left of the budget of user {this_user()}: 60 s" in caplog.text

    with pytest.raises(BudgetError) as refused:
        task(allowance, UNKNOWN, "b")

    assert refused.value.needed is None
    assert "an unknown number of seconds (not known until 3 tasks were" in refused.value.message
    assert "but 0 s are left of the budget of user" in refused.value.message
    assert "Run it again when the running tasks have ended, ask your" in refused.value.message
    end(first, 12.5)
    assert usage(site) == (12.5, 0)
    end(task(allowance, UNKNOWN, "b"), 1.0)
    assert usage(site) == (13.5, 0)
    assert caplog.text.count("not known until") == 1


def test_a_known_task_does_not_start_beside_one_of_unknown_duration(site, allowance):
    first = task(allowance, UNKNOWN, "a")
    with pytest.raises(BudgetError, match="reserved for running tasks: 60 s"):
        task(allowance, Amount(shots=50, seconds=1.0), "b")
    end(first, 2.0)
    task(allowance, Amount(shots=50, seconds=1.0), "b")
    assert usage(site) == (2, 1)


def test_in_doubt_what_was_reserved_for_it_is_spent(site, allowance):
    """The vendor may have run it, for nobody knows how long."""
    entry = task(allowance, UNKNOWN, "a")
    settle_task(entry.record, UNKNOWN)
    assert usage(site) == (60, 0)


def test_the_site_may_say_how_long_such_a_task_is_expected_to_take(site, allowance):
    allowance.task_seconds = 20.0
    estimate = allowance.estimate(PULSES, "pasqal-cloud", "")
    assert estimate == Amount(shots=50, seconds=20.0, origin="task_seconds of site.toml")

    for name in "abc":
        task(allowance, estimate, name)
    with pytest.raises(BudgetError, match=r"20 s \(task_seconds of site\.toml\), but"):
        task(allowance, estimate, "d")
    assert usage(site) == (0, 60)


def test_a_task_that_does_not_say_its_shots_is_refused_by_a_budget_in_shots(site, allowance):
    """They would not be known afterwards, either."""
    write_limits(site, [SHOTS])
    with pytest.raises(BudgetError, match="does not say how many shots it takes"):
        task(allowance, Amount(), "a")
    task(allowance, UNKNOWN, "b")
    assert find_usage(Ledger(site), SHOTS, this_user(), today()).reserved == 50
