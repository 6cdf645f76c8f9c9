"""Which session a stage gets, and what to do with it between tasks. Pure functions of figures.

A dedicated session is billed by the wall clock while it is active, and its tasks wait for nobody. A
batch is billed by QPU seconds and an overhead for each task. Either is active until it has been
idle for the interactive TTL; the next task of a session that has lapsed, or of a new one, waits in
the vendor's queue. The rules and their sources are those of `ResourceType`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "Action",
    "Cost",
    "Decision",
    "ModeChoice",
    "Shape",
    "Situation",
    "choose_mode",
    "decide",
    "gaps_between",
    "observed_shape",
]

_FEWEST_TASKS = 3  # from which a shape can be told


class Shape(StrEnum):
    """How a stage uses its QPU: it waits for each answer, or submits without waiting."""

    LOOP = "loop"
    FAN_OUT = "fan-out"


class Action(StrEnum):
    """What to do with an idle session. Of equally dear actions, the first is chosen."""

    LET_LAPSE = "let it lapse"
    KEEP_WARM = "keep it warm"
    REOPEN = "close and reopen"
    BATCH = "go on in a batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChoice:
    """The mode of a session.

    Attributes:
        mode: `dedicated` or `batch`.
        reason: Why, for the log.
    """

    mode: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an action is expected to cost until the stage's last task.

    Attributes:
        billed: The seconds that are billed for idle time and overhead.
        waited: The seconds of waiting in the vendor's queue.
    """

    billed: float
    waited: float

    def total(self, waiting_cost: float) -> float:
        """Return the cost in billed seconds, given what a second of waiting is worth."""
        return self.billed + waiting_cost * self.waited


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known about an idle session. Times are in seconds.

    Attributes:
        mode: `dedicated` or `batch`.
        gaps: How long the QPU was idle between tasks so far.
        idle: How long it has been idle now, apart from tasks that kept it warm.
        since_task: How long ago its last task of any kind ended; at most the interactive TTL. By
            default, as long as it has been idle.
        interactive_ttl: How long an idle session stays active.
        queue: How long a task waits in the vendor's queue.
        task_overhead: What is billed for each task in a batch besides its QPU seconds.
        waiting_cost: How many billed seconds a second of waiting is worth.
        gaps_left: How many gaps are expected, with this one.
    """

    mode: str
    gaps: Sequence[float]
    idle: float
    interactive_ttl: float
    queue: float
    task_overhead: float = 0.0
    waiting_cost: float = 1.0
    gaps_left: int = 1
    since_task: float | None = None

    @property
    def lapses_after(self) -> float:
        """How long after the start of this gap the session lapses."""
        since = self.idle if self.since_task is None else self.since_task
        return self.idle + self.interactive_ttl - since


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with an idle session, and why.

    Attributes:
        action: The cheapest action.
        costs: The cost of each action that was compared.
        reason: The decision and its figures, as a sentence for the log.
    """

    action: Action
    costs: Mapping[Action, Cost]
    reason: str


def choose_mode(
    *,
    requested: str = "auto",
    policy: str = "auto",
    shape: Shape | None = None,
    spans: Sequence[tuple[float, float]] = (),
    configured: str = "dedicated",
) -> ModeChoice:
    """Choose the mode of a session.

    Args:
        requested: What the user asks for: `auto`, `dedicated` or `batch`.
        policy: What the site's policy says for the QPU: the same.
        shape: The stage's shape, if it is known.
        spans: When earlier tasks of the stage were submitted, and when they ended.
        configured: The mode in the QPU's own settings, which holds if nothing is known.
    """
    for mode, reason in ((requested, "as requested"), (policy, "by the site's policy")):
        if mode != "auto":
            return ModeChoice(mode=mode, reason=reason)
    source = "" if shape else f"of {len(spans)} earlier tasks "
    shape = shape or observed_shape(spans)
    if shape is Shape.FAN_OUT:
        reason = f"{source}a fan-out does not wait for answers, so only its QPU seconds count"
        return ModeChoice(mode="batch", reason=reason)
    if shape is Shape.LOOP:
        reason = f"{source}a loop waits for each answer, and no other task may come in between"
        return ModeChoice(mode="dedicated", reason=reason)
    return ModeChoice(mode=configured, reason="as configured, since the stage's shape is not known")


def observed_shape(spans: Sequence[tuple[float, float]]) -> Shape | None:
    """Tell a stage's shape from when its tasks were submitted and ended; `None` if it is not clear.

    It is a fan-out if at least half of the tasks were submitted before an earlier one had ended,
    and a loop if none was.
    """
    if len(spans) < _FEWEST_TASKS:
        return None
    overlapping, reached = 0, -math.inf
    for start, end in sorted(spans):
        overlapping += start < reached
        reached = max(reached, end)
    if overlapping == 0:
        return Shape.LOOP
    return Shape.FAN_OUT if 2 * overlapping >= len(spans) - 1 else None


def gaps_between(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return how long the QPU was idle between tasks.

    Args:
        spans: When each task was submitted, and when it ended.
    """
    gaps: list[float] = []
    ordered = sorted(spans)
    reached = ordered[0][1] if ordered else 0.0
    for start, end in ordered[1:]:
        if start > reached:
            gaps.append(start - reached)
        reached = max(reached, end)
    return gaps


def decide(now: Situation, allowed: Collection[Action] = tuple(Action)) -> Decision:
    """Decide what to do with an idle session: the action that costs least.

    The gap is expected to be as long as one of those seen that were longer than this one already
    is; if there was none, to last once more as long as so far. Each later one is like those seen.

    Args:
        now: The situation.
        allowed: The actions that are possible, apart from doing nothing (`LET_LAPSE`).
    """
    longer = [gap for gap in now.gaps if gap > now.idle] or [2 * now.idle]
    actions = [each for each in Action if each in allowed or each is Action.LET_LAPSE]
    if now.mode != "dedicated":
        actions = [each for each in actions if each in (Action.LET_LAPSE, Action.KEEP_WARM)]
    if not now.gaps:
        actions = [Action.LET_LAPSE]
    costs = {action: _cost(action, now, longer) for action in actions}
    best = min(actions, key=lambda action: costs[action].total(now.waiting_cost))
    return Decision(action=best, costs=costs, reason=_explain(best, costs, now, longer))


def _cost(action: Action, now: Situation, longer: Sequence[float]) -> Cost:
    first = [_cost_of_gap(action, now, gap, idle=now.idle) for gap in longer]
    later = [_cost_of_gap(action, now, gap, idle=None) for gap in now.gaps]
    count = max(0, now.gaps_left - 1)

    def expected(values: list[float], others: list[float]) -> float:
        return statistics.fmean(values) + (count * statistics.fmean(others) if others else 0.0)

    return Cost(
        billed=expected([each.billed for each in first], [each.billed for each in later]),
        waited=expected([each.waited for each in first], [each.waited for each in later]),
    )


def _cost_of_gap(action: Action, now: Situation, gap: float, *, idle: float | None) -> Cost:
    """Return what a gap costs.

    Args:
        action: The action.
        now: The situation.
        gap: How long the gap is.
        idle: How much of it has passed already; `None` for a later gap.
    """
    passed = idle or 0.0
    until = now.interactive_ttl if idle is None else now.lapses_after
    lapses = now.queue if gap > until else 0.0
    if action is Action.REOPEN:  # a session that is not active yet is not billed
        return Cost(billed=0.0, waited=now.queue)
    if action is Action.BATCH:  # it is opened in this gap
        waited = lapses if idle is None else now.queue
        return Cost(billed=now.task_overhead, waited=waited)
    if action is Action.LET_LAPSE:
        billed = min(gap, until) - passed if now.mode == "dedicated" else 0.0
        return Cost(billed=billed, waited=lapses)
    if now.mode == "dedicated":
        return Cost(billed=gap - passed, waited=0.0)
    tasks = max(0, math.ceil((gap - until) / now.interactive_ttl))
    return Cost(billed=tasks * now.task_overhead, waited=0.0)


def _explain(
    best: Action, costs: Mapping[Action, Cost], now: Situation, longer: Sequence[float]
) -> str:
    if not now.gaps:
        return f"{best}: idle for {now.idle:.0f} s, and no gap between tasks was seen before"
    lapsing = sum(gap > now.lapses_after for gap in longer)
    several = "" if now.gaps_left < 2 else f"for this gap and {now.gaps_left - 1} more: "
    prices = "; ".join(
        f"{action}: {cost.billed:.0f} s billed, {cost.waited:.0f} s waiting"
        for action, cost in costs.items()
    )
    return (
        f"{best}: idle for {now.idle:.0f} s in a {now.mode} session, {lapsing} of {len(longer)} "
        f"expected gaps outlast the interactive TTL of {now.interactive_ttl:g} s, the vendor's "
        f"queue takes {now.queue:.0f} s ({several}{prices})"
    )
