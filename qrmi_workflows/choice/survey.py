"""All candidates for a request, in the order of choice.

Those that fit come first: the available ones before those of unknown state, and those before the
ones that are away; each with the fewest tasks and jobs ahead first. Equals are in another order for
each head, so that heads that choose at the same time spread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qrmi_workflows.choice.candidates import Asker, Candidates, find_candidates
from qrmi_workflows.choice.expression import compile_expression
from qrmi_workflows.choice.facts import Facts
from qrmi_workflows.choice.gather import gather
from qrmi_workflows.choice.recent import RecentChoices
from qrmi_workflows.choice.verdict import (
    Verdict,
    judge,
    needs_calibration,
    needs_target,
    passes_by_name,
)
from qrmi_workflows.client.targets import MAX_AGE_HOURS
from qrmi_workflows.config.constraints import QPUConstraint

__all__ = [
    "AVAILABLE",
    "AWAY",
    "UNKNOWN",
    "Ranked",
    "Survey",
    "in_order",
    "make_surveys",
    "require_valid",
    "survey",
]

AVAILABLE, UNKNOWN, AWAY = range(3)
"""The ranks of candidates; the state of those in between is not known."""

_CALIBRATION_HOURS = 0.25  # the age of targets if it matters when the QPU was calibrated


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A candidate, in the order of choice.

    Attributes:
        name: Its name.
        verdict: Whether it fits.
        facts: What is known of it; `None` if it was not asked about.
        ahead: How many tasks and jobs are ahead, with the choices of the last seconds.
    """

    name: str
    verdict: Verdict
    facts: Facts | None = None
    ahead: float = 0.0

    @property
    def rank(self) -> int:
        """Whether it is available, away, or neither is known."""
        if self.facts is None:
            return UNKNOWN
        found = self.facts.availability
        is_away = self.facts.notice is not None or not self.facts.is_offered
        if is_away or found.operational is False:
            return AWAY
        return UNKNOWN if found.operational is None else AVAILABLE

    @property
    def reason(self) -> str:
        """Why it cannot be used now, or what it lacks; empty if neither."""
        if not self.verdict.fits:
            return "; ".join(self.verdict.lacks)
        return (
            "" if self.facts is None or self.rank == AVAILABLE else self.facts.availability.reason
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All candidates for one QPU of a request.

    Attributes:
        constraint: What is asked for.
        ranked: The candidates: those that fit first, the one to choose at the head; then the
            others, the nearest first.
        candidates: Where they come from.
    """

    constraint: QPUConstraint
    ranked: tuple[Ranked, ...]
    candidates: Candidates

    @property
    def fitting(self) -> list[Ranked]:
        """Those that fit, the one to choose first."""
        return [each for each in self.ranked if each.verdict.fits]


def survey(
    constraint: QPUConstraint,
    asker: Asker,
    *,
    all_facts: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Survey:
    """Return all candidates for a request, in the order of choice, without choosing one.

    Args:
        constraint: The request.
        asker: Who asks.
        all_facts: Whether to ask for the targets even if they do not matter.
        environ: The environment.

    Raises:
        RequestError: The request is not valid.
        ConfigError: There is no usable site policy, or none of `qrmi_config.json`.
    """
    require_valid([constraint])
    (found,) = make_surveys([constraint], asker, environ, all_facts=all_facts)
    return in_order(found, asker, RecentChoices(environ), ())


def require_valid(constraints: Sequence[QPUConstraint]) -> None:
    """Refuse expressions that are not valid, whatever QPUs there are.

    Raises:
        RequestError: One is not valid.
    """
    for each in constraints:
        if each.where is not None:
            compile_expression(each.where)


def make_surveys(
    constraints: Sequence[QPUConstraint],
    asker: Asker,
    environ: Mapping[str, str],
    *,
    all_facts: bool = False,
) -> list[Survey]:
    """Ask once about all QPUs that pass any of the constraints by their names."""
    candidates = find_candidates(asker, environ)
    by_name = [
        {name: passes_by_name(name, each, constraint) for name, each in candidates.qpus.items()}
        for constraint in constraints
    ]
    asked = {
        name: (each.definition, each.policy)
        for name, each in candidates.qpus.items()
        if any(verdicts[name].fits for verdicts in by_name)
    }
    hours = None
    if all_facts or any(map(needs_target, constraints)):
        hours = _CALIBRATION_HOURS if any(map(needs_calibration, constraints)) else MAX_AGE_HOURS
    facts = gather(asked, candidates.site, target_hours=hours, environ=environ)
    found = []
    for constraint, verdicts in zip(constraints, by_name, strict=True):
        ranked = [
            Ranked(
                name=name,
                verdict=judge(facts[name], constraint) if verdict.fits else verdict,
                facts=facts[name] if verdict.fits else None,
            )
            for name, verdict in verdicts.items()
        ]
        found.append(Survey(constraint=constraint, ranked=tuple(ranked), candidates=candidates))
    return found


def in_order(found: Survey, asker: Asker, recent: RecentChoices, avoid: Collection[str]) -> Survey:
    """Bring candidates into the order of choice.

    Args:
        found: The candidates.
        asker: Who asks.
        recent: The choices of the last seconds.
        avoid: QPUs that have just turned out not to be available.
    """
    key = asker.key or f"{os.uname().nodename}:{os.getpid()}"
    counted = [
        each
        if each.facts is None
        else replace(
            each,
            ahead=each.facts.tasks_ahead + recent.count(each.name, each.facts.asked),
        )
        for each in found.ranked
    ]

    def order(each: Ranked) -> tuple[object, ...]:
        if not each.verdict.fits:
            # Those of another name, or that the user may not use, are not near.
            lacks = len(each.verdict.lacks), each.verdict.shortfall
            return (1, each.facts is None, *lacks, each.name)
        rank = max(each.rank, AWAY if each.name in avoid else AVAILABLE)
        return (0, rank, each.ahead, _spread(key, each.name), each.name)

    return replace(found, ranked=tuple(sorted(counted, key=order)))


def _spread(key: str, qpu: str) -> float:
    """Return a number that puts equal QPUs in another order for each key, and always the same."""
    digest = hashlib.sha256(f"{key}\n{qpu}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
