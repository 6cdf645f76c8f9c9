"""Resolve a request to the names of QPUs, once for each job.

Inside a job, nothing is chosen that the job does not hold: the choice was made when the job was
submitted. Elsewhere the least busy QPU that fits is chosen, and if it turns out not to be
available, another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qrmi_workflows.config.constraints import (
    QPUConstraint,
    matches,
    parse_fallback,
    parse_qpus,
    plain_names,
)
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.site import readable_site_policy
from qrmi_workflows.config.variables import (
    QPU_FALLBACK,
    QPU_NAME,
    QPU_STAGE,
    QPU_STEP,
    choice_wait_seconds,
)
from qrmi_workflows.errors import LeaseError, QPUError, RequestError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.grants import assumed_qpus, granted_qpus
from qrmi_workflows.schedulers import this_job

if TYPE_CHECKING:
    from qrmi_workflows.choice.choose import Choice

__all__ = ["Chosen", "QPURequestText", "default_request", "open_chosen", "resolve"]

logger = logging.getLogger(__name__)

QPURequestText = str | list[str] | None
"""A request as `open_lease` takes it; a list stands for all of its QPUs."""

T = TypeVar("T")

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The QPUs of a request.

    Attributes:
        qpus: The name, or the list of names if several are needed together; `None` if the request
            names none.
        choices: The choices that were made, one for each QPU; empty if there was none to make.
        stays: Whether one has tasks of the step, so that no other can take its place.
    """

    qpus: QPURequestText
    choices: tuple[Choice, ...] = ()
    stays: bool = False

    def without_itself(
        self, fallback: str | Sequence[str] | None, environ: Mapping[str, str] = os.environ
    ) -> str | Sequence[str] | None:
        """Return the QPUs to fall back to, without one that was chosen already.

        Args:
            fallback: As `open_lease` takes it.
            environ: The environment.
        """
        given = environ.get(QPU_FALLBACK) if fallback is None else fallback
        if not self.choices or not given:
            return fallback
        chosen = {each.qpu for each in self.choices}
        return [name for name in parse_fallback(given) if name not in chosen]


def resolve(
    qpu: QPURequestText,
    *,
    min_qubits: int | None = None,
    type: str | None = None,  # noqa: A002 - QRMI's own word
    where: str | None = None,
    stage: str | None = None,
    config: Path | None = None,
    step: str | None = None,
    avoid: Collection[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Chosen:
    """Return the names of the QPUs that a request asks for; choose them if it leaves a choice.

    Args:
        qpu: The request: a name, a pattern, alternatives, several with `+`; or a list. If `None`,
            `$QPU_NAME` has one, unless the environment describes a QPU or a stage.
        min_qubits: How many qubits each QPU has at least.
        type: The resource type of each.
        where: An expression that must hold for each.
        stage: The stage of several jobs whose lease is to be used, if any.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        step: The step's name; if `None`, `$QPU_STEP` says it.
        avoid: QPUs that have just turned out not to be available. This then waits for no other.
        environ: The environment.

    Raises:
        RequestError: The request is not valid, no QPU can ever satisfy it, or this process's job
            holds none that does.
        UnknownQPUError: None of the names is known.
        LeaseError: No QPU fits, or is available, and none did in `$QPU_CHOICE_WAIT`.
        ConfigError: There is no usable `qrmi_config.json`.
    """
    if qpu is None and not stage:
        qpu = default_request(environ)
    if qpu is None and (min_qubits, type, where) == (None, None, None):
        return Chosen(qpus=None)
    constraints = parse_qpus(qpu, min_qubits=min_qubits, type=type, where=where)
    if where is not None:
        from qrmi_workflows.choice.survey import require_valid

        require_valid(constraints)  # an emulated QPU is taken without looking at it
    is_list = isinstance(qpu, list | tuple) or len(constraints) > 1
    if (names := plain_names(constraints)) is not None:
        return Chosen(qpus=names if is_list else names[0])
    if (joined := _of_stage(constraints, stage, environ)) is not None:
        return Chosen(qpus=joined)
    from qrmi_workflows.choice.candidates import Asker  # most requests leave nothing to choose
    from qrmi_workflows.choice.reasons import note_choices
    from qrmi_workflows.choice.resumed import choose_for_step, find_resumed
    from qrmi_workflows.journal.journal import Journal

    only = _held(constraints, environ)
    if only is not None:
        _require_what_lasts(constraints, only, config, environ)
        constraints = _without_conditions_met(constraints, only)
        if (names := plain_names(constraints)) is not None:
            return Chosen(qpus=names if is_list else names[0])
    name = step or environ.get(QPU_STEP, "")
    asker = Asker(for_job=False, config=config, only=only, key=name)
    wait = 0.0 if avoid else choice_wait_seconds(environ)
    # On another QPU than before, the tasks of an earlier attempt would be paid for again.
    records = Journal().step(name).records() if name else []
    stays = any(qpu is not None for qpu, _ in find_resumed(constraints, records))
    for attempt in range(_ATTEMPTS):
        choices = choose_for_step(
            constraints, asker, records, wait=wait, avoid=avoid, environ=environ
        )
        # The answer that it is online may be some seconds old.
        if stays or attempt == _ATTEMPTS - 1 or not _gone(choices, config, environ):
            break
    note_choices(choices)
    chosen = [each.qpu for each in choices]
    return Chosen(qpus=chosen if is_list else chosen[0], choices=choices, stays=stays)


def default_request(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return what `$QPU_NAME` asks for, unless the environment describes a QPU or a stage."""
    if environ.get(QPU_STAGE) or read_job(environ):
        return None
    return environ.get(QPU_NAME) or None


def _gone(
    choices: Sequence[Choice], config: Path | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return which of the chosen QPUs are not operational any more, and why."""
    from qrmi_workflows.choice.gather import gone

    definitions = {}
    for choice in choices:
        if not is_emulated(choice.qpu):
            with suppress(QPUError):  # whoever opens it meets the same error
                definitions[choice.qpu] = find_qpu(choice.qpu, config=config, environ=environ)
    found = gone(definitions, environ)
    for name, reason in found.items():
        logger.warning("QPU %r has gone since it was chosen: %s", name, reason)
    return found


def open_chosen(choose_: Callable[[Collection[str]], Chosen], open_: Callable[[Chosen], T]) -> T:
    """Open what was chosen; if a QPU turns out not to be available, choose again without it.

    Args:
        choose_: Chooses, given the QPUs to avoid.
        open_: Opens the QPUs that were chosen.

    Raises:
        LeaseError: A QPU was not available, and there is no other to choose.
    """
    refused: list[str] = []
    chosen = choose_(refused)
    while True:
        try:
            return open_(chosen)
        except LeaseError as error:
            again = _choose_again(choose_, chosen, refused, error)
            if again is None:
                raise
            logger.warning("%s Chose %s instead.", error, again.qpus)
            chosen = again


def _choose_again(
    choose_: Callable[[Collection[str]], Chosen],
    chosen: Chosen,
    refused: list[str],
    error: LeaseError,
) -> Chosen | None:
    """Return another choice than the one that was refused; `None` if there is none."""
    names = {each.qpu for each in chosen.choices if each.why != "it was asked for by name"}
    if chosen.stays or error.qpu not in names or error.qpu in refused:
        return None
    refused.append(error.qpu)
    try:
        again = choose_(refused)
    except QPUError:
        return None
    return again if not set(refused) & {each.qpu for each in again.choices} else None


def _of_stage(
    constraints: Sequence[QPUConstraint], stage: str | None, environ: Mapping[str, str]
) -> str | None:
    """Return the QPU of the stage to join, if the request names it by a pattern."""
    name = stage or environ.get(QPU_STAGE)
    if not name or len(constraints) > 1:
        return None
    from qrmi_workflows.lease.stage import find_stage  # most leases are for no stage

    found = find_stage(name)
    (constraint,) = constraints
    if not constraint.names or matches(found.qpu, constraint.names):
        return found.qpu
    if stage is None:
        return None
    raise RequestError(
        f"stage {name!r} has QPU {found.qpu!r}, which is not {constraint}. Leave the QPU out; or "
        "open another stage."
    )


def _require_what_lasts(
    constraints: Sequence[QPUConstraint],
    held: frozenset[str],
    config: Path | None,
    environ: Mapping[str, str],
) -> None:
    """Refuse conditions that no QPU of the job ever meets: nobody has checked them before it."""
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.choice.choose import require_possible

    lasting = [
        QPUConstraint(names=each.names, min_qubits=each.min_qubits, type=each.type)
        for each in constraints
        if (each.min_qubits, each.type) != (None, None)
    ]
    asker = Asker(for_job=False, config=config, only=held)
    require_possible(lasting, asker, environ=environ)


def _without_conditions_met(
    constraints: Sequence[QPUConstraint], held: Collection[str]
) -> tuple[QPUConstraint, ...]:
    """Drop the conditions if the job holds just as many QPUs as it needs.

    They were met when the job was submitted; its queue, for example, may have grown since.
    """
    matching = [
        [name for name in sorted(held) if not each.names or matches(name, each.names)]
        for each in constraints
    ]
    if len({name for names in matching for name in names}) != len(constraints):
        return tuple(constraints)
    return tuple(
        QPUConstraint(names=tuple(names) or each.names)
        for each, names in zip(constraints, matching, strict=True)
    )


def _held(
    constraints: Sequence[QPUConstraint], environ: Mapping[str, str]
) -> frozenset[str] | None:
    """Return the QPUs to which a choice in this process is limited; `None` if it is not."""
    held = frozenset({*read_job(environ), *assumed_qpus(), *granted_qpus(environ)})
    if held:
        return held
    site, job = readable_site_policy(environ), this_job(environ)
    if job is None or site is None:
        return None
    without = frozenset(name for name, policy in site.qpus.items() if not policy.require_grant)
    if without or any(is_emulated(name) for each in constraints for name in each.names):
        return without  # an emulated QPU needs no grant
    request = " + ".join(map(str, constraints))
    raise RequestError(
        f"job {job.id} holds no QPU, so none can be chosen for {request}; must be chosen when the "
        "job is submitted. Submit it with the options that `qpu request` prints for this request."
    )
