"""The mode of a stage's session, and what to do with it between tasks, with worked figures."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from qrmi_workflows.stages.modes import (
    Action,
    Cost,
    Shape,
    Situation,
    choose_mode,
    decide,
    gaps_between,
    observed_shape,
)

LOOP = [(0.0, 3.0), (10.0, 13.0), (30.0, 33.0)]
FAN_OUT = [(0.0, 3.0), (0.1, 6.0), (0.2, 9.0)]
IDLE = Situation(mode="dedicated", gaps=[20, 20], idle=5, interactive_ttl=60, queue=30)


@pytest.mark.parametrize(
    ("given", "mode", "reason"),
    [
        ({"requested": "batch", "policy": "dedicated", "shape": Shape.LOOP}, "batch", "requested"),
        ({"policy": "dedicated", "shape": Shape.FAN_OUT}, "dedicated", "policy"),
        ({"shape": Shape.FAN_OUT, "spans": LOOP}, "batch", "a fan-out does not wait"),
        ({"shape": Shape.LOOP, "spans": FAN_OUT}, "dedicated", "a loop waits"),
        ({"spans": FAN_OUT}, "batch", "of 3 earlier tasks a fan-out"),
        ({"spans": LOOP, "configured": "batch"}, "dedicated", "of 3 earlier tasks a loop"),
        ({}, "dedicated", "not known"),
        ({"configured": "batch", "spans": LOOP[:2]}, "batch", "as configured"),
    ],
)
def test_the_mode_is_fixed_by_request_policy_or_shape(given, mode, reason):
    """In this order; if none says anything, the QPU's own setting holds."""
    choice = choose_mode(**given)
    assert choice.mode == mode
    assert reason in choice.reason


def test_the_shape_is_told_from_overlaps():
    assert observed_shape(LOOP) is Shape.LOOP
    assert observed_shape(FAN_OUT) is Shape.FAN_OUT
    assert observed_shape(LOOP[:2]) is None
    assert observed_shape([*LOOP, (31.0, 40.0), (50.0, 60.0), (70.0, 80.0)]) is None


def test_gaps_are_the_times_without_a_task():
    assert gaps_between([]) == []
    assert gaps_between(LOOP) == [7, 17]
    assert gaps_between(FAN_OUT) == []
    assert gaps_between([*FAN_OUT, (19.0, 20.0)]) == [10]


def test_short_gaps_need_nothing():
    """20 s are below the TTL: 15 s more are billed, and nobody waits."""
    decision = decide(IDLE)
    assert decision.action is Action.LET_LAPSE
    assert decision.costs[Action.LET_LAPSE] == Cost(billed=15, waited=0)
    assert decision.costs[Action.REOPEN] == Cost(billed=0, waited=30)


def test_a_gap_that_is_a_little_too_long_is_kept_warm():
    """70 s: 65 s more are billed, 10 s more than if it lapses, which costs a wait of 30 s."""
    decision = decide(replace(IDLE, gaps=[70], queue=100))
    assert decision.action is Action.KEEP_WARM
    assert decision.costs[Action.KEEP_WARM] == Cost(billed=65, waited=0)
    assert decision.costs[Action.LET_LAPSE] == Cost(billed=55, waited=100)
    assert decision.costs[Action.REOPEN] == Cost(billed=0, waited=100)


def test_long_gaps_close_the_session():
    """600 s would be billed to avoid a wait of 30 s."""
    decision = decide(replace(IDLE, gaps=[600]))
    assert decision.action is Action.REOPEN
    assert decision.reason == (
        "close and reopen: idle for 5 s in a dedicated session, 1 of 1 expected gaps outlast the "
        "interactive TTL of 60 s, the vendor's queue takes 30 s (let it lapse: 55 s billed, 30 s "
        "waiting; keep it warm: 595 s billed, 0 s waiting; close and reopen: 0 s billed, 30 s "
        "waiting; go on in a batch: 0 s billed, 30 s waiting)"
    )


def test_many_gaps_below_the_ttl_go_on_in_a_batch():
    """10 gaps of 50 s: 2 s of overhead for each task and one wait are cheaper than 50 s each."""
    now = replace(IDLE, idle=0, gaps=[50], gaps_left=10, task_overhead=2)
    decision = decide(now)
    assert decision.action is Action.BATCH
    assert decision.costs[Action.BATCH] == Cost(billed=20, waited=30)
    assert decision.costs[Action.LET_LAPSE] == Cost(billed=500, waited=0)


def test_a_batch_is_kept_warm_by_a_task_before_each_ttl():
    """150 s need tasks after 60 s and 120 s; each costs its overhead, which beats a wait."""
    now = replace(IDLE, mode="batch", gaps=[150], task_overhead=2)
    decision = decide(now)
    assert decision.action is Action.KEEP_WARM
    assert decision.costs == {
        Action.LET_LAPSE: Cost(billed=0, waited=30),
        Action.KEEP_WARM: Cost(billed=4, waited=0),
    }


def test_waiting_may_be_worth_nothing_or_much():
    now = replace(IDLE, gaps=[70], idle=0)
    assert decide(replace(now, waiting_cost=0)).action is Action.REOPEN
    assert decide(replace(now, waiting_cost=10)).action is Action.KEEP_WARM


def test_a_session_that_was_kept_warm_lapses_later():
    """100 s idle, the last warm-up 40 s ago: it lapses in 20 s, and the gap of 130 s in 30 s."""
    now = replace(IDLE, gaps=[130], idle=100, since_task=40)
    costs = decide(now).costs
    assert costs[Action.LET_LAPSE] == Cost(billed=20, waited=30)
    assert costs[Action.KEEP_WARM] == Cost(billed=30, waited=0)


def test_only_what_is_possible_is_chosen():
    now = replace(IDLE, gaps=[600])
    assert decide(now, allowed=[Action.KEEP_WARM]).action is Action.LET_LAPSE
    assert Action.REOPEN not in decide(now, allowed=[]).costs


def test_without_gaps_nothing_is_done():
    decision = decide(replace(IDLE, gaps=[]))
    assert decision.action is Action.LET_LAPSE
    assert decision.reason.endswith("no gap between tasks was seen before")


def test_a_gap_longer_than_all_before_is_expected_to_double():
    """50 s so far and never more than 20 s before: 50 s more."""
    decision = decide(replace(IDLE, idle=50))
    assert decision.costs[Action.KEEP_WARM] == Cost(billed=50, waited=0)
    assert decision.costs[Action.LET_LAPSE] == Cost(billed=10, waited=30)


class Vendor:
    """A vendor that bills second by second: an independent account of what an action costs."""

    def __init__(self, now: Situation) -> None:
        self.now = now
        self.billed = self.waited = 0.0
        self.is_active, self.mode = True, now.mode

    def gap(self, action: Action, gap: int, passed: int, *, is_first: bool) -> None:
        since = self.now.since_task
        idle = passed if since is None or not is_first else int(since)
        if action in (Action.REOPEN, Action.BATCH) and (action is Action.REOPEN or is_first):
            self.is_active = False
            self.mode = "batch" if action is Action.BATCH else self.mode
        for _ in range(passed, gap):
            if idle == self.now.interactive_ttl and self.is_active:
                if action is Action.KEEP_WARM:
                    idle = 0
                    self.billed += self.now.task_overhead if self.mode == "batch" else 0
                else:
                    self.is_active = False
            self.billed += self.is_active and self.mode == "dedicated"
            idle += 1
        if not self.is_active:
            self.waited += self.now.queue
            self.is_active = True
        if action is Action.BATCH:
            self.billed += self.now.task_overhead


def play(action: Action, now: Situation, gaps: list[int]) -> float:
    """Return what an action costs for these gaps, of which the first has begun."""
    vendor = Vendor(now)
    for number, gap in enumerate(gaps):
        passed = int(now.idle) if number == 0 else 0
        vendor.gap(action, gap, passed, is_first=number == 0)
    return vendor.billed + now.waiting_cost * vendor.waited


def test_the_decision_is_never_dearer_than_another():
    """All that may come, second by second: every first gap with every gap for the later ones."""
    dice = random.Random(13)
    for _ in range(300):
        now = Situation(
            mode=dice.choice(["dedicated", "batch"]),
            gaps=[dice.randrange(1, 150) for _ in range(dice.randrange(1, 5))],
            idle=dice.randrange(0, 40),
            interactive_ttl=dice.randrange(40, 70),
            queue=dice.choice([0, 10, 30, 60, 300]),
            task_overhead=dice.choice([0, 2]),
            waiting_cost=dice.choice([0, 0.5, 1, 4]),
            gaps_left=dice.randrange(1, 4),
        )
        if dice.random() < 0.5:  # it has been kept warm
            now = replace(now, since_task=dice.randrange(0, int(now.idle) + 1))
        longer = [gap for gap in now.gaps if gap > now.idle] or [2 * now.idle]
        decision = decide(now)
        played = {}
        for action in decision.costs:
            runs = [
                play(action, now, [first, *([gap] * (now.gaps_left - 1))])
                for first in map(int, longer)
                for gap in map(int, now.gaps)
            ]
            played[action] = sum(runs) / len(runs)
            expected = decision.costs[action].total(now.waiting_cost)
            assert played[action] == pytest.approx(expected), (action, now)
        assert played[decision.action] == pytest.approx(min(played.values()))
