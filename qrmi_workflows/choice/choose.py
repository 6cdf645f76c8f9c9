"""Choose QPUs: what a request asks for, against the site's policy, targets and states.

Of the QPUs that fit, the least busy available one is chosen: that with the fewest tasks and jobs
ahead. If none of them is available, a job gets the one that would be chosen otherwise, and waits
for it in the queue; a process without a job waits here. So does everybody while no QPU fits.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.emulated import (
    choose_emulated,
    is_for_emulated,
    require_emulated,
)
from qrmi_workflows.choice.recent import RecentChoices, one_at_a_time
from qrmi_workflows.choice.survey import (
    AVAILABLE,
    AWAY,
    Ranked,
    Survey,
    in_order,
    make_surveys,
    require_valid,
)
from qrmi_workflows.choice.verdict import (
    is_asked_for,
    names_asked_for,
)
from qrmi_workflows.config.constraints import QPUConstraint
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.site import site_policy_for
from qrmi_workflows.errors import LeaseError, QPUError, RequestError, UnknownQPUError
from qrmi_workflows.retry import retry
from qrmi_workflows.schedulers import load_scheduler, this_scheduler
from qrmi_workflows.schedulers.base import QPURequest

__all__ = ["Choice", "choose", "nothing_fits", "require_possible"]

logger = logging.getLogger(__name__)

_NEAREST = 5
_MOST_OPTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A QPU that was chosen, and why.

    Attributes:
        qpu: Its name, or `emulated:MODEL`.
        request: What was asked for.
        why: Why this QPU, in a few words.
        rejected: Why each of the others was not chosen, by name.
        waits: Why a job will have to wait for it; empty if it is available.
    """

    qpu: str
    request: str
    why: str
    rejected: Mapping[str, str] = field(default_factory=dict)
    waits: str = ""

    def __str__(self) -> str:
        """Say it in one sentence, without a full stop."""
        waits = f"; its job waits: {self.waits}" if self.waits else ""
        return f"chose QPU {self.qpu!r} for {self.request}: {self.why}{waits}"


def choose(
    constraints: Sequence[QPUConstraint],
    asker: Asker,
    *,
    wait: float = 0.0,
    avoid: Collection[str] = (),
    stop: threading.Event | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Choice, ...]:
    """Choose a QPU for each constraint, all different.

    Args:
        constraints: What is asked for (`parse_qpus`).
        asker: Who asks, and for what.
        wait: For how many seconds to wait while no QPU fits, or, without a job, while none of them
            is available.
        avoid: QPUs that have just turned out not to be available.
        stop: Set this event to give up waiting.
        environ: The environment.

    Raises:
        RequestError: No QPU can ever satisfy the request; the message says what the nearest lack.
        UnknownQPUError: None of the names in the request is known.
        LeaseError: No QPU fits, or is available, at the moment; `retryable` is true.
        ConfigError: There is no usable site policy, or none of `qrmi_config.json`.
    """
    require_valid(constraints)
    if all(each.name is not None for each in constraints):
        return tuple(_as_named(each) for each in constraints)
    require_emulated(constraints)
    told = _Waiting()
    return retry(
        lambda: _choose_now(constraints, asker, avoid, environ),
        lambda error: isinstance(error, LeaseError) and error.retryable and wait > 0,
        stop=stop,
        seconds=wait,
        pause=1.0,
        max_pause=15.0,
        before_pause=told,
    )


def require_possible(
    constraints: Sequence[QPUConstraint], asker: Asker, *, environ: Mapping[str, str] = os.environ
) -> None:
    """Refuse a request that no QPU can ever satisfy, without choosing one.

    Args:
        constraints: What is asked for.
        asker: Who asks, and for what.
        environ: The environment.

    Raises:
        RequestError: No QPU can ever satisfy it; the message says what the nearest lack.
        UnknownQPUError: None of the names in it is known.
        ConfigError: There is no usable site policy, or none of `qrmi_config.json`.
    """
    require_valid(constraints)
    require_emulated(constraints)
    settled = _without_asking(constraints)
    taken = {each.qpu for each in settled.values()}
    if open_ := [each for number, each in enumerate(constraints) if number not in settled]:
        recent = RecentChoices(environ)
        surveys = [in_order(s, asker, recent, ()) for s in make_surveys(open_, asker, environ)]
        with suppress(LeaseError):  # another time, one may
            _assign(surveys, asker, taken)


class _Waiting:
    """Says why a choice waits: at first, and when the reason changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, seconds: float, error: BaseException) -> None:
        if str(error) != self._last:
            self._last = str(error)
            logger.warning("waiting for a QPU (%.0f s so far): %s", seconds, error)


def _as_named(constraint: QPUConstraint) -> Choice:
    name = str(constraint.name)
    return Choice(qpu=name, request=name, why="it was asked for by name")


def _choose_now(
    constraints: Sequence[QPUConstraint],
    asker: Asker,
    avoid: Collection[str],
    environ: Mapping[str, str],
) -> tuple[Choice, ...]:
    settled = _without_asking(constraints)
    open_ = [each for number, each in enumerate(constraints) if number not in settled]
    chosen = _choose_open(open_, asker, avoid, {each.qpu for each in settled.values()}, environ)
    answers = iter(chosen)
    found = tuple(
        settled[number] if number in settled else next(answers)
        for number in range(len(constraints))
    )
    for choice in chosen:
        logger.info("%s", choice)
        if choice.waits:
            logger.warning("QPU %r is chosen, but its job waits: %s", choice.qpu, choice.waits)
    return found


def _without_asking(constraints: Sequence[QPUConstraint]) -> dict[int, Choice]:
    """Return the choices for which no vendor and no scheduler has to be asked, by position."""
    found = {
        number: _as_named(each) for number, each in enumerate(constraints) if each.name is not None
    }
    for number, each in enumerate(constraints):
        if number not in found and is_for_emulated(each):
            used = {choice.qpu for choice in found.values()}
            qpu = choose_emulated(each, used)
            if qpu is None:
                raise RequestError(
                    f"no QPU is left for {each}: the rest of the request needs "
                    f"{', '.join(each.names)}. Ask for fewer QPUs."
                )
            found[number] = Choice(qpu=qpu, request=str(each), why="it is emulated")
    return found


def _choose_open(
    constraints: Sequence[QPUConstraint],
    asker: Asker,
    avoid: Collection[str],
    taken: Collection[str],
    environ: Mapping[str, str],
) -> list[Choice]:
    if not constraints:
        return []
    surveys = make_surveys(constraints, asker, environ)
    with one_at_a_time(environ):
        recent = RecentChoices(environ)
        surveys = [in_order(each, asker, recent, avoid) for each in surveys]
        chosen = _assign(surveys, asker, taken)
        recent.note(each.qpu for each in chosen if not is_emulated(each.qpu))
    for found in surveys:
        _warn_of_unknown(found)
    return chosen


def _warn_of_unknown(found: Survey) -> None:
    """Say which alternatives are unknown: the request does not need them, but may mean others."""
    known = found.candidates.qpus
    for name in sorted(set(names_asked_for(found.constraint)) - known.keys()):
        remedy = f"It is left out of {found.constraint}."
        logger.warning("%s", UnknownQPUError(name, known, found.candidates.where, remedy))


def _assign(surveys: Sequence[Survey], asker: Asker, taken: Collection[str]) -> list[Choice]:
    """Choose a QPU for each survey, all different."""
    options = [
        [each.name for each in found.fitting if each.rank != AWAY and each.name not in taken]
        for found in surveys
    ]
    tried = itertools.product(*(names[:_MOST_OPTIONS] for names in options))
    different = [names for names in tried if len(set(names)) == len(names)]
    # If no job can hold any of them together, whoever submits it says why.
    may_be_held = (names for names in different if _may_be_held([*taken, *names], asker))
    together = next(may_be_held, None) or next(iter(different), None)
    if together is not None:
        return [
            _choice(found, next(each for each in found.fitting if each.name == name), taken)
            for found, name in zip(surveys, together, strict=True)
        ]
    chosen: dict[int, Choice] = {}
    used = set(taken)
    for index in sorted(range(len(surveys)), key=lambda index: len(surveys[index].fitting)):
        choice = _choose_one(surveys[index], asker, used)
        chosen[index] = choice
        used.add(choice.qpu)
    return [chosen[index] for index in range(len(surveys))]


def _may_be_held(names: Sequence[str], asker: Asker) -> bool:
    """Return whether the site can grant these QPUs to one job."""
    real = [name for name in names if not is_emulated(name)]
    if not asker.for_job or len(real) < 2:
        return True
    from qrmi_workflows.schedulers.several import compile_requests  # few requests are for several

    asked = [QPURequest(qpu=name, count=asker.count) for name in real]
    scheduler = load_scheduler(asker.scheduler) if asker.scheduler else this_scheduler()
    try:
        compile_requests(
            asked,
            site_policy_for(real),
            scheduler,
            account=asker.account,
            partition=asker.partition,
        )
    except (RequestError, UnknownQPUError):
        return False
    return True


def _choose_one(found: Survey, asker: Asker, used: Collection[str]) -> Choice:
    constraint = found.constraint
    emulated = choose_emulated(constraint, used)
    free = [each for each in found.fitting if each.name not in used]
    best = free[0] if free else None
    if best is not None and best.rank != AWAY:
        return _choice(found, best, used)
    if emulated is not None:
        why = "no QPU that fits is available" if free or found.ranked else "no QPU fits"
        return Choice(qpu=emulated, request=str(constraint), why=why, rejected=_rejected(found, ""))
    if best is None:
        raise nothing_fits(found, used)
    if asker.for_job:
        return replace(_choice(found, best, used), waits=best.reason)
    raise LeaseError(
        f"no QPU for {constraint} is available: {_list(found.fitting)}. Try again later.",
        best.name,
        True,
    )


def _choice(found: Survey, best: Ranked, used: Collection[str]) -> Choice:
    others = [each for each in found.fitting if each.name != best.name and each.name not in used]
    if not others:
        why = "no other fits"
    else:
        near = ", ".join(f"{each.name}: {_ahead(each)}" for each in others[:_NEAREST])
        ahead = _ahead(best) + ("" if best.rank == AWAY else " ahead")
        why = f"least busy of {len(others) + 1} that fit: {ahead} ({near})"
    return Choice(
        qpu=best.name,
        request=str(found.constraint),
        why=why,
        rejected=_rejected(found, best.name),
    )


def _ahead(each: Ranked) -> str:
    if each.rank == AVAILABLE:
        return f"{each.ahead:.3g}"
    return each.reason if each.rank == AWAY else f"{each.ahead:.3g}, state not known"


def _rejected(found: Survey, chosen: str) -> dict[str, str]:
    unknown = set(names_asked_for(found.constraint)) - found.candidates.qpus.keys()
    return {
        each.name: each.reason or f"{each.ahead:.3g} tasks and jobs ahead"
        for each in found.ranked
        if each.name != chosen and is_asked_for(each.name, found.constraint)
    } | dict.fromkeys(sorted(unknown), f"unknown {found.candidates.where}")


def nothing_fits(found: Survey, used: Collection[str] = ()) -> QPUError:
    """Return the error if no QPU fits: for good, or for now.

    Args:
        found: The candidates.
        used: Those that other parts of the request need.
    """
    constraint, candidates = found.constraint, found.candidates
    asked_for = [each for each in found.ranked if is_asked_for(each.name, constraint)]
    problems = "".join(f" {each}" for each in candidates.problems)
    names = names_asked_for(constraint)
    if names and len(names) == len(constraint.names) and not set(names) & candidates.qpus.keys():
        remedy = f"`qpu list` shows the QPUs on offer.{problems}"
        return UnknownQPUError(names[0], candidates.qpus, candidates.where, remedy)
    later = [each for each in asked_for if each.verdict.may_fit_later]
    if later or (found.fitting and used):
        busy = [each for each in found.fitting if each.name in used]
        if not later and len(busy) == len(found.fitting):
            return RequestError(
                f"no QPU is left for {constraint}: the rest of the request needs "
                f"{', '.join(each.name for each in busy)}. Ask for fewer QPUs, or for less."
            )
        return LeaseError(
            f"no QPU satisfies {constraint} now: {_list(later)}. Try again later.", "", True
        )
    if not candidates.qpus:
        return RequestError(
            f"no QPU for {constraint}: there are none {candidates.where}.{problems} `qpu list` "
            "shows the QPUs on offer."
        )
    if not asked_for:
        return RequestError(
            f"no QPU {candidates.where} matches {'|'.join(constraint.names)!r}; must match one of: "
            f"{', '.join(candidates.qpus)}.{problems} Correct the request."
        )
    return RequestError(
        f"no QPU can satisfy {constraint}. The nearest: {_list(asked_for)}.{problems} Ask for "
        "less; `qpu list` with the same request shows what each QPU lacks."
    )


def _list(ranked: Sequence[Ranked]) -> str:
    shown = "; ".join(f"{each.name}: {each.reason}" for each in ranked[:_NEAREST])
    more = len(ranked) - _NEAREST
    return f"{shown}; and {more} more" if more > 0 else shown
