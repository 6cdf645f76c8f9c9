"""Which QPUs a step may use, in order: those that it has left, its own, those to fall back to."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qrmi_workflows.config.constraints import parse_fallback
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.variables import (
    QPU_FALLBACK,
    QPU_MOVE_FILE,
    QPU_MOVED_FROM,
    STAGE_VARIABLES,
)
from qrmi_workflows.errors import PayloadError, RequestError, StepMovedError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.state.files import write_atomically

if TYPE_CHECKING:
    from qrmi_workflows.payloads import Payload

__all__ = [
    "FallbackPlan",
    "Moved",
    "moved_from",
    "not_for",
    "plan_alone",
    "plan_fallback",
    "require_one_fits",
    "require_runnable",
    "submit_again",
    "write_plan",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackPlan:
    """The QPUs of a step, in order.

    Attributes:
        left: Those that had gone, and that the step has left.
        names: Its own, and those to fall back to.
        found: How to reach each.
    """

    left: tuple[str, ...]
    names: tuple[str, ...]
    found: Mapping[str, JobQPU]

    @property
    def all_names(self) -> tuple[str, ...]:
        """All of them, in order."""
        return self.left + self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Where a step goes on, in a job of its own, as its last job has left it (`submit_again`).

    Attributes:
        left: The QPUs that had gone, in order.
        qpu: The QPU that it needs now.
        rest: Those that it may fall back to after that.
        reason: Why the last one counts as gone.
    """

    left: tuple[str, ...]
    qpu: str
    rest: tuple[str, ...]
    reason: str

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Read what a job has left; `None` if it has not moved."""
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            left, rest = tuple(document["left"]), tuple(document["rest"])
            moved = cls(left=left, qpu=document["qpu"], rest=rest, reason=document["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        texts = (*moved.left, moved.qpu, *moved.rest, moved.reason)
        return moved if moved.left and all(isinstance(text, str) for text in texts) else None


def moved_from(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the QPUs that this process's step has left because they had gone."""
    return [name for name in environ.get(QPU_MOVED_FROM, "").split(",") if name]


def plan_alone(
    qpu: str, fallback: str | Sequence[str], environ: Mapping[str, str] = os.environ
) -> FallbackPlan | None:
    """Return the QPUs of a job that is to be submitted, whatever this process's own job holds.

    Args:
        qpu: As `plan_fallback` takes it.
        fallback: As `plan_fallback` takes it.
        environ: The environment.

    Raises:
        QPUError: As `plan_fallback`.
    """
    others = {name: value for name, value in environ.items() if name not in STAGE_VARIABLES}
    return plan_fallback(qpu, fallback, config=None, environ=others)


def plan_fallback(
    qpu: str | None,
    fallback: str | Sequence[str] | None,
    *,
    config: Path | None,
    environ: Mapping[str, str] = os.environ,
) -> FallbackPlan | None:
    """Return the QPUs of a step; `None` if it has nothing to fall back to, and has not moved.

    Args:
        qpu: The QPU's name, as `open_lease` takes it.
        fallback: The QPUs to fall back to; if `None`, `$QPU_FALLBACK` names them.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        environ: The environment.

    Raises:
        RequestError: A name is not valid, is named twice, or follows an emulated QPU.
        UnknownQPUError: One of them is not defined.
        ConfigError: There is no usable `qrmi_config.json`.
    """
    given = environ.get(QPU_FALLBACK) or None if fallback is None else fallback
    rest = list(parse_fallback(given)) if given else []
    left = moved_from(environ)
    if qpu is not None and is_emulated(qpu) and rest and not left:
        # With the QPU's name replaced, a workflow is tried out: that must not cost anything.
        logger.info("QPU %r is emulated and does not go away: %s not used", qpu, ", ".join(rest))
        return None
    if not rest and not left:
        return None
    if qpu is None or qpu in left:  # the job goes on with what it holds
        left = left[left.index(qpu) :] if qpu in left else left
        qpu = find_qpu(None, config=config, environ=environ).name
        rest = rest[rest.index(qpu) + 1 :] if qpu in rest else rest
    names = [qpu, *(name for name in rest if name not in left)]
    _require_order(names)
    found = {name: find_qpu(name, config=config, environ=environ) for name in (*left, *names)}
    return FallbackPlan(left=tuple(left), names=tuple(names), found=found)


def _require_order(names: Sequence[str]) -> None:
    own, *rest = names
    if own in rest:
        raise RequestError(
            f"fallback {','.join(rest)!r}: QPU {own!r} cannot fall back to itself; must be other "
            "QPUs, in order. Leave it out."
        )
    for first, second in pairwise(rest):
        if is_emulated(first):
            raise RequestError(
                f"fallback {','.join(rest)!r}: {second!r} would never be used, because "
                f"{first!r} is emulated and does not go away; an emulated QPU must be the last. "
                "Move it to the end, or leave the others out."
            )


def require_runnable(
    payload: Payload, qpu: str, fallback: str | Sequence[str], *, config: Path | None
) -> None:
    """Refuse a payload that none of the QPUs to fall back to can run, as far as is known.

    Args:
        payload: The payload.
        qpu: Its QPU's name.
        fallback: As `plan_fallback` takes it.
        config: As `plan_fallback` takes it.

    Raises:
        PayloadError: None of them can run it, or one is of another vendor.
    """
    plan = plan_fallback(qpu, fallback, config=config)
    if plan is not None:
        require_one_fits(payload, [plan.found[name] for name in plan.names[1:]])


def require_one_fits(payload: Payload, qpus: Sequence[JobQPU]) -> None:
    """Refuse a payload that none of some QPUs can run, as far as their cached targets tell.

    Args:
        payload: The payload.
        qpus: The QPUs.

    Raises:
        PayloadError: None of them can run it, or one is of another vendor.
    """
    from qrmi_workflows.client.targets import cached_target

    failures = []
    for qpu in qpus:
        try:
            payload.require_type(qpu.name, qpu.type)
        except PayloadError as error:
            raise PayloadError(
                f"the payload cannot run on {qpu.name!r}, to which the step would fall back: it is "
                f"for {payload.vendor}, and the QPU's type is {qpu.type}. Leave {qpu.name!r} out "
                "of the fallback."
            ) from error
        try:
            known = cached_target(qpu)
            payload.require_fit(qpu.name, None if known is None else known.text)
        except PayloadError as error:
            failures.append(not_for(qpu.name, error))
    if failures and len(failures) == len(qpus):
        raise failures[0]
    for failure in failures:
        logger.warning("%s", failure)


def not_for(name: str, error: PayloadError) -> PayloadError:
    """Return the error of a payload that a QPU to fall back to cannot run."""
    return PayloadError(
        f"the payload cannot run on {name!r}, to which the step would fall back: "
        f"{error.message.removesuffix('.')}. Leave {name!r} out of the fallback, or give "
        "`on_move` to the lease's `run` or `submit`, to transpile the payload again."
    )


def write_plan(left: Sequence[str], rest: Sequence[str]) -> dict[str, str]:
    """Render the variables that give a child process the plan, from the job's QPU on."""
    return {QPU_FALLBACK: ",".join(rest), QPU_MOVED_FROM: ",".join(left)}


def submit_again(
    left: Sequence[str],
    name: str,
    rest: Sequence[str],
    *,
    reason: str,
    environ: Mapping[str, str] = os.environ,
) -> StepMovedError:
    """Return the error of a step whose next QPU needs a job of its own; tell the engine of it.

    Args:
        left: The QPUs that the step has left, the last one now.
        name: The next QPU.
        rest: Those after it.
        reason: Why the last one counts as gone.
        environ: The environment.
    """
    gone = left[-1]
    if file := environ.get(QPU_MOVE_FILE):
        document = {"left": list(left), "qpu": name, "rest": list(rest), "reason": reason}
        try:
            write_atomically(Path(file), json.dumps(document))
        except OSError as error:
            logger.warning("%s: cannot be written: %s", file, error.strerror or error)
    more = f" --fallback {','.join(rest)}" if rest else ""
    return StepMovedError(
        f"QPU {gone!r} has gone: {reason.removesuffix('.')}. The next one, {name!r}, was not "
        f"granted to this job. Submit the step again with `--qpu {name}{more}`, and with "
        f"{QPU_MOVED_FROM}={','.join(left)} in its environment to find the tasks that have ended.",
        gone,
        name,
    )
