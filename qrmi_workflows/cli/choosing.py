"""Choose QPUs for commands, and say which were chosen and why."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.choice.choose import Choice
    from qrmi_workflows.config.constraints import QPUConstraint

__all__ = ["choose_for_job", "choose_for_stage", "describe_choices", "tell"]


def choose_for_job(
    constraints: tuple[QPUConstraint, ...], asker: Asker
) -> tuple[list[str], tuple[Choice, ...]]:
    """Return the names of the QPUs that a job is to request, and the choices that were made.

    Raises:
        RequestError: See `choose`.
    """
    from qrmi_workflows.choice.choose import choose
    from qrmi_workflows.choice.survey import require_valid
    from qrmi_workflows.config.constraints import plain_names
    from qrmi_workflows.config.variables import choice_wait_seconds

    require_valid(constraints)
    if (names := plain_names(constraints)) is not None:
        return names, ()
    choices = choose(constraints, asker, wait=choice_wait_seconds())
    tell(choices)
    return [each.qpu for each in choices], choices


def choose_for_stage(name: str, constraints: tuple[QPUConstraint, ...], asker: Asker) -> str:
    """Return the name of the QPU of a stage; if the stage is open and has one that fits, that.

    Raises:
        RequestError: Several QPUs are asked for; or see `choose`.
    """
    from qrmi_workflows.choice.reasons import choice_variable
    from qrmi_workflows.choice.verdict import is_asked_for
    from qrmi_workflows.errors import RequestError
    from qrmi_workflows.lease.stage import list_stages

    if len(constraints) > 1:
        raise RequestError(
            f"stage {name!r}: a stage has one QPU, not {len(constraints)}. Name one, and open "
            "another stage for each of the others."
        )
    if constraints[0].name is None:
        for each in list_stages():
            if each.name == name and not each.is_ended and is_asked_for(each.qpu, constraints[0]):
                return each.qpu
    (chosen,), choices = choose_for_job(constraints, asker)
    os.environ.update(choice_variable(choices))  # for the keeper's job
    return chosen


def tell(choices: Iterable[Choice]) -> None:
    """Say on stderr which QPUs were chosen, and why."""
    for each in choices:
        click.echo(f"qpu: {each}", err=True)


def describe_choices(choices: Iterable[Choice]) -> list[dict[str, Any]]:
    """Return choices as JSON shows them."""
    return [asdict(each) for each in choices]
