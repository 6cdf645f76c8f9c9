"""`qpu site reconcile`: have the scheduler follow the states of the QPUs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.client.discovery import find_discovered
from qrmi_workflows.client.states import Answer, Definition, ask_all, ask_state
from qrmi_workflows.config.qpus import QPUDefinition, load_dynamic, load_qpus
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import QPUError
from qrmi_workflows.schedulers import scheduler_of
from qrmi_workflows.site.admission import Applied, apply, judge
from qrmi_workflows.site.notice_board import Known, NoticeBoard, Seen

__all__ = ["ANSWER_SECONDS", "PATIENCE_SECONDS", "Reconciled", "follow", "reconcile"]

ANSWER_SECONDS = 10.0
"""How long each vendor may take to answer."""

PATIENCE_SECONDS = 900.0
"""How long a vendor may be silent before its QPU is away."""

_ALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What the vendors have answered, and what was done.

    Attributes:
        answers: The answers, or why there is none, by QPU.
        applied: What was done at the scheduler.
    """

    answers: Mapping[str, Answer | str]
    applied: Applied


def reconcile(
    site: SitePolicy,
    config: Path | None,
    *,
    patience: float = PATIENCE_SECONDS,
    seconds: float = ANSWER_SECONDS,
) -> Reconciled:
    """Ask the vendors, and have jobs of the QPUs that are away wait for them.

    It may be killed at any moment, and run several times at once. What was set by hand stays.

    Args:
        site: The site policy.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        patience: For how many seconds a vendor may be silent before its QPU is away.
        seconds: How long each vendor may take to answer.

    Raises:
        ConfigError: This user may not do this, or a file is wrong.
        SchedulerError: The scheduler did not answer; the answers have been recorded.
    """
    board = NoticeBoard(site)
    with board.changed() as known:
        before = known.seen
    definitions = _definitions(site, config, before)
    answers = ask_all(
        definitions,
        seconds=seconds,
        in_all=_ALL_SECONDS,
        ask=lambda definition: _ask(definition, config, seconds),
    )
    for name in site.qpus.keys() - definitions.keys():
        answers[name] = "qrmi_config.json does not define it"
    with board.changed() as known:
        follow(board, known, site, answers, patience=patience)
        applied = apply(board, known, site, scheduler_of(site).admission())
    return Reconciled(answers=answers, applied=applied)


def follow(
    board: NoticeBoard,
    known: Known,
    site: SitePolicy,
    answers: Mapping[str, Answer | str],
    *,
    patience: float,
    now: float | None = None,
) -> None:
    """Bring what is known, and the notices, up to date with the vendors' answers.

    A QPU that was not asked keeps its state, like one whose vendor is silent.
    """
    now = time.time() if now is None else now
    seen: dict[str, Seen] = {}
    for name in site.qpus:
        before = known.seen.get(name)
        if name not in answers:
            if before is not None:
                seen[name] = before
            continue
        answer = answers[name]
        seen[name] = judge(
            None if isinstance(answer, str) else answer, before, now=now, patience=patience
        )
    known.seen = seen
    board.post_states(seen)


def _definitions(
    site: SitePolicy, config: Path | None, seen: Mapping[str, Seen]
) -> dict[str, Definition]:
    """Return the definitions of the site's QPUs, in the order in which to ask for them.

    Silent vendors come last, and those whose answer is the oldest first: there may not be time for
    all of them.
    """
    defined, dynamic = load_qpus(config), load_dynamic(config)
    found: dict[str, Definition] = {}
    for name in site.qpus:
        if name in defined:
            found[name] = defined[name]
        elif dynamic:  # its account is found when it is asked
            found[name] = QPUDefinition(name=name, type="", environment={})
    never = Seen(answered=0.0)
    order = {name: seen.get(name, never) for name in found}
    names = sorted(found, key=lambda name: (order[name].is_silent, order[name].answered))
    return {name: found[name] for name in names}


def _ask(definition: Definition, config: Path | None, seconds: float) -> Answer:
    if not definition.type:
        account = find_discovered(definition.name, load_dynamic(config).values())
        if account is None:
            raise QPUError("no account of qrmi_config.json has it")
        definition = account
    return ask_state(definition, seconds=seconds)
