"""The estimated bill of a lease, with figures worked out by hand."""

from __future__ import annotations

import random

import pytest

from qrmi_workflows.lease.bill import active_seconds, estimate_bill, total_seconds
from qrmi_workflows.tasks.usage import TaskUsage
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type, registered_types

SERVICE = registered_type("ibm-quantum-compute-service")
CLOUD = registered_type("pasqal-cloud")
assert SERVICE is not None
assert CLOUD is not None


def task(start: float, running: float | None, end: float, state: str = "Completed") -> TaskUsage:
    return TaskUsage(qpu="q", task_id="t", started=start, ended=end, state=state, running=running)


def test_qpu_seconds_are_the_time_that_a_task_was_not_queued():
    """Two tasks of 3 s and 4 s that waited for 10 s each."""
    tasks = [task(0, 10, 13), task(20, 30, 34)]
    bill = estimate_bill(tasks, traits=CLOUD, mode=None, closed=100)
    assert (bill.seconds, bill.rule) == (7, "QPU seconds")


def test_a_batch_adds_an_overhead_for_each_task():
    bill = estimate_bill(
        [task(0, 10, 13), task(20, 20, 24)], traits=SERVICE, mode="batch", closed=90
    )
    assert (bill.seconds, bill.rule) == (3 + 4 + 2 * 2, "QPU seconds and 2 s a task")


def test_a_dedicated_session_is_billed_from_its_first_task_to_its_close():
    """The wait of the first task is not; the pause of 20 s and the 5 s until the close are."""
    tasks = [task(0, 30, 33), task(53, 53, 55)]
    bill = estimate_bill(tasks, traits=SERVICE, mode="dedicated", closed=60)
    assert (bill.seconds, bill.rule) == (30, "dedicated session: wall clock")


def test_a_lapsed_session_is_billed_until_its_interactive_ttl():
    """3 s and 60 s idle; then, after a second wait, 2 s and again 60 s, though it closes later."""
    tasks = [task(0, 30, 33), task(200, 230, 232)]
    bill = estimate_bill(tasks, traits=SERVICE, mode="dedicated", closed=1000)
    assert bill.seconds == 63 + 62


def test_a_task_that_was_cancelled_in_the_queue_costs_nothing():
    waiting, running = task(0, None, 50, "Cancelled"), task(0, 10, 12, "Cancelled")
    assert estimate_bill([waiting], traits=SERVICE, mode="batch", closed=60).seconds == 0
    assert estimate_bill([running], traits=SERVICE, mode="batch", closed=60).seconds == 2 + 2


def test_usage_of_an_earlier_release_counts_from_the_submission():
    assert estimate_bill([task(5, None, 9)], traits=CLOUD, mode=None, closed=9).seconds == 4


def test_a_lease_without_tasks_costs_nothing():
    for mode in ("dedicated", "batch", None):
        assert estimate_bill([], traits=SERVICE, mode=mode, closed=500).seconds == 0


def test_the_sites_dedicated_session_is_not_billed_to_the_lease():
    """When it started and when it ends is not known."""
    tasks = [task(0, 30, 33)]
    bill = estimate_bill(tasks, traits=SERVICE, mode="dedicated", closed=60, adopted=True)
    assert (bill.seconds, bill.rule) == (
        None,
        "dedicated session: wall clock, until the site closes it",
    )
    assert estimate_bill(tasks, traits=SERVICE, mode="batch", closed=60, adopted=True).seconds == 5


def test_times_agree_with_counting_ticks():
    """Random tasks: a session's activity and the tasks' total time, second by second."""
    dice = random.Random(5)
    for _ in range(200):
        spans = [(start, start + dice.randrange(20)) for start in dice.choices(range(200), k=5)]
        ttl, closed = dice.randrange(1, 40), dice.randrange(0, 400)
        busy = {t for start, end in spans for t in range(start, end)}
        warm = {t for start, end in spans for t in range(start, end + ttl)}
        last = max(end for _, end in spans)
        active = {t for t in warm if t < max(last, closed)}
        assert total_seconds(spans) == len(busy)
        assert active_seconds(spans, closed=closed, interactive_ttl=ttl) == len(active)


@pytest.mark.parametrize("name", registered_types())
def test_only_ibms_service_has_modes_and_an_overhead(name):
    """Whatever is written in the setting, a type without modes has none."""
    traits = registered_type(name)
    assert traits is not None
    has_modes = name in ("ibm-quantum-compute-service", "qiskit-runtime-service")
    assert traits.session_mode({}) == ("dedicated" if has_modes else None)
    assert traits.task_overhead == (2.0 if has_modes else 0.0)
    if traits.mode_setting is not None:
        assert traits.session_mode({traits.mode_setting: "Batch"}) == "batch"


def test_a_type_of_another_package_is_billed_by_qpu_seconds():
    bill = estimate_bill([task(0, 1, 3)], traits=ResourceType(qrmi="X"), mode=None, closed=4)
    assert (bill.seconds, bill.rule) == (2, "QPU seconds")
