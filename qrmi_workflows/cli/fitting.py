"""`qpu list` with a request: which QPU would be chosen, and why the others would not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.errors import LeaseError

if TYPE_CHECKING:
    from qrmi_workflows.choice.survey import Ranked, Survey
    from qrmi_workflows.config.constraints import QPUConstraint
    from qrmi_workflows.vendors.emulated import EmulatedQPU

__all__ = ["list_fitting"]

_HEADINGS = ("QPU", "TYPE", "QUBITS", "STATE", "QUEUE", "AHEAD", "CHOICE")


def list_fitting(constraint: QPUConstraint, *, config: Path | None, as_json: bool) -> None:
    """List the candidates for a request in the order of choice; the emulated ones are the last.

    Args:
        constraint: The request.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        as_json: Whether to print JSON.

    Raises:
        RequestError: The request is not valid, or matches the name of no QPU.
        ConfigError: There is no usable `qrmi_config.json`.
    """
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.choice.choose import nothing_fits
    from qrmi_workflows.choice.survey import AWAY, require_valid, survey
    from qrmi_workflows.choice.verdict import is_asked_for
    from qrmi_workflows.config.site import readable_site_policy
    from qrmi_workflows.schedulers import this_job
    from qrmi_workflows.vendors.emulated import find_emulated

    require_valid([constraint])
    emulated = [find_emulated(name) for name in constraint.names if is_emulated(name)]
    if emulated and len(emulated) == len(constraint.names):  # neither a site nor a file is needed
        _print([_describe_emulated(each, emulated[0].name) for each in emulated], as_json=as_json)
        return
    is_for_job = config is None and readable_site_policy() is not None and this_job() is None
    found = survey(constraint, Asker(for_job=is_for_job, config=config), all_facts=True)
    listed = [each for each in found.ranked if is_asked_for(each.name, constraint)]
    if not listed and not emulated:
        raise nothing_fits(found)
    best: Ranked | EmulatedQPU | None = next(iter(found.fitting), None)
    if emulated and (not found.fitting or found.fitting[0].rank == AWAY):
        best = emulated[0]
    chosen = None if best is None else best.name
    rows = [_describe(each, chosen) for each in listed]
    _print([*rows, *(_describe_emulated(each, chosen) for each in emulated)], as_json=as_json)
    for problem in found.candidates.problems:
        click.echo(f"qpu: {problem}", err=True)
    if best is None:
        click.echo(f"qpu: {_nothing_fits(found, nothing_fits(found))}", err=True)


def _nothing_fits(found: Survey, error: Exception) -> str:
    """Return the error without the reasons, which the table has."""
    if isinstance(error, LeaseError):
        return f"no QPU satisfies {found.constraint} now"
    return f"no QPU can satisfy {found.constraint}"


def _print(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(_HEADINGS, map(_cells, rows))


def _describe_emulated(each: EmulatedQPU, chosen: str | None) -> dict[str, Any]:
    keys = (
        *("name", "type", "qubits", "gates", "calibration_age", "state", "queue", "free"),
        *("waiting", "ahead", "fits", "may_fit_later", "chosen", "reason"),
    )
    is_chosen = each.name == chosen
    known = {"name": each.name, "type": each.type, "ahead": 0.0, "fits": True}
    why_not = "" if is_chosen else "for when no QPU is available"
    later = {"may_fit_later": False, "chosen": is_chosen, "reason": why_not}
    return {**dict.fromkeys(keys), **known, **later}


def _describe(each: Ranked, chosen: str | None) -> dict[str, Any]:
    facts = each.facts
    fields = {} if facts is None else facts.fields()
    gates = fields.get("gates")
    return {
        "name": each.name,
        "type": fields.get("type"),
        "qubits": fields.get("qubits"),
        "gates": sorted(gates) if isinstance(gates, frozenset) else None,
        "calibration_age": fields.get("calibration_age"),
        "state": fields.get("state"),
        "queue": fields.get("queue"),
        "free": fields.get("free"),
        "waiting": fields.get("waiting"),
        "ahead": each.ahead,
        "fits": each.verdict.fits,
        "may_fit_later": each.verdict.may_fit_later,
        "chosen": each.name == chosen,
        "reason": each.reason,
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    ahead = f"{row['ahead']:.3g}" if row["fits"] else None
    if row["chosen"]:
        choice = f"chosen; a job waits for it: {row['reason']}" if row["reason"] else "chosen"
    else:
        choice = row["reason"] or "fits"
    known = (row["name"], row["type"], row["qubits"], row["state"], row["queue"])
    return (*known, ahead, choice)
