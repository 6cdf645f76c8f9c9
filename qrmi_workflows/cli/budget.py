"""`qpu budget`: what tasks may take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import JSON_OPTION, Group
from qrmi_workflows.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from qrmi_workflows.budgets.allowance import Usage
    from qrmi_workflows.budgets.ledger import Ledger
    from qrmi_workflows.budgets.limits import Limit

__all__ = ["budget"]

_PERIODS = ["day", "month", "total"]


@click.group(cls=Group)
def budget() -> None:
    """Show and set what tasks may take: shots or QPU time.

    The site's administrators give budgets to users and accounts. A task that would take more than
    is left is refused before it is submitted. Users limit their own jobs and stages with --budget
    of `qpu lease exec` and `qpu stage open`, budget= of `open_lease`, and $QPU_BUDGET.
    """


@budget.command("show")
@click.option("--user", metavar="NAME", help="A user; by default you.")
@click.option("--account", metavar="NAME", help="An account; by default that of this job.")
@click.option("--qpu", metavar="NAME", help="Only budgets that apply to this QPU.")
@JSON_OPTION
def show(user: str | None, account: str | None, qpu: str | None, as_json: bool) -> None:
    """Show what is spent, reserved and left of budgets.

    These are the site's budgets, and those of your open stages. What your own dead processes have
    reserved is first settled or given back, as the journal says.

    \b
    Examples:
      qpu budget show
      qpu budget show --account chem --json
    """  # noqa: D301 - \b tells click not to rewrap a paragraph
    from qrmi_workflows.budgets.ledger import Ledger, this_user
    from qrmi_workflows.budgets.settling import settle_all_dead
    from qrmi_workflows.lease.allowances import own_ledger, site_ledger
    from qrmi_workflows.schedulers import this_job

    me, site, job = this_user(), site_ledger(), this_job()
    account = account or (job.account if job is not None else None)
    ledger = Ledger(site or own_ledger())
    settle_all_dead(ledger.user(me))
    usages = [] if site is None else _usages(ledger, user or me, account, qpu)
    if user in (None, me):
        usages += _own_usages(ledger, me, qpu)
    if as_json:
        click.echo(json.dumps([_document(usage) for usage in usages], indent=1))
    elif not usages:
        click.echo(f"no budget limits user {user or me!r}{f' or {account!r}' if account else ''}")
    else:
        headings = ("BUDGET", "QPU", "PER", "LIMIT", "SPENT", "RESERVED", "LEFT", "UNTIL")
        print_table(headings, [_row(usage) for usage in usages])


@budget.command("set")
@click.argument("scope", metavar="SCOPE")
@click.argument("limit", metavar="LIMIT")
@click.option(
    "--per",
    type=click.Choice(_PERIODS),
    default="total",
    show_default=True,
    help="The period after which the budget starts again, in UTC.",
)
@click.option("--qpu", metavar="NAME", help="Only for this QPU; by default for all together.")
def set_(scope: str, limit: str, per: str, qpu: str | None) -> None:
    """Set a budget of the site; for administrators.

    SCOPE is user:NAME or account:NAME; user:* and account:* stand for every user or account without
    a budget of its own. LIMIT is a number of shots, or a time on the QPU ('1000 shots', '90 s',
    '10 min', '2 h'); `none` removes the budget. A budget takes effect at once, for tasks that have
    not been submitted yet.

    Budgets are kept in limits.toml, in the folder that site.toml names ([site] budgets).

    \b
    Examples:
      qpu budget set 'user:*' '10 min' --per month
      qpu budget set account:chem '100000 shots' --per day --qpu ibm_fez
      qpu budget set account:chem none --per day --qpu ibm_fez
    """  # noqa: D301
    from qrmi_workflows.budgets.ledger import Ledger
    from qrmi_workflows.budgets.limits import Limit, parse_limit, read_limits, write_limits
    from qrmi_workflows.config.qpus import require_valid_name

    kind, name = _parse_scope(scope)
    if qpu is not None:
        require_valid_name(qpu, "--qpu")
    unit, amount = ("", 0) if limit == "none" else parse_limit(limit, "LIMIT")
    folder = _site_folder()
    ledger = Ledger(folder)
    ledger.prepare(for_all=True)
    with ledger.locked():
        limits = read_limits(folder)
        rest = [
            each
            for each in limits
            if (each.scope, each.name, each.per, each.qpu) != (kind, name, per, qpu)
            or unit not in ("", each.unit)
        ]
        new = [Limit(scope=kind, name=name, unit=unit, amount=amount, per=per, qpu=qpu)]
        if not unit and len(rest) == len(limits):
            found = [each for each in limits if (each.scope, each.name) == (kind, name)]
            raise RequestError(_no_budget(scope, per, qpu, found))
        write_limits(folder, [*rest, *(new if unit else [])])


def _no_budget(scope: str, per: str, qpu: str | None, others: list[Limit]) -> str:
    of_qpu = "" if qpu is None else f" and --qpu {qpu}"
    options = [
        f"--per {each.per}" + ("" if each.qpu is None else f" --qpu {each.qpu}") for each in others
    ]
    known = f"; there are budgets with {', '.join(options)}" if options else ""
    return (
        f"there is no budget of {scope} with --per {per}{of_qpu} to remove{known}. Name the period "
        "and the QPU with which it was set."
    )


def _parse_scope(scope: str) -> tuple[str, str]:
    from qrmi_workflows.budgets.limits import ANYBODY, SCOPES, require_name

    kind, colon, name = scope.partition(":")
    if kind not in SCOPES or not colon:
        raise RequestError(
            f"SCOPE {scope!r}: must be user:NAME or account:NAME. Jobs and stages get theirs with "
            "--budget of `qpu lease exec` and `qpu stage open`. Correct it."
        )
    if name != ANYBODY:
        require_name(name, kind)
    return kind, name


def _site_folder() -> Path:
    from qrmi_workflows.config.site import load_site_policy

    policy = load_site_policy()
    if policy.folders.budgets is None:
        raise ConfigError(
            f'{policy.path}: names no folder for budgets. Add `budgets = "/…"` to its table '
            "[site]; all hosts must share the folder."
        )
    return policy.folders.budgets


def _usages(ledger: Ledger, user: str, account: str | None, qpu: str | None) -> list[Usage]:
    from qrmi_workflows.budgets.allowance import find_usage, today
    from qrmi_workflows.budgets.limits import applicable, read_limits, require_name
    from qrmi_workflows.lease.allowances import account_members

    require_name(user, "user")
    if account is not None:
        require_name(account, "account")
    limits = read_limits(ledger.folder)
    found: list[Limit] = []
    for name in {limit.qpu for limit in limits} | {None} if qpu is None else {qpu}:
        for limit in applicable(limits, user=user, account=account, qpu=name or ""):
            if limit not in found:
                found.append(limit)
    found.sort(key=lambda limit: (limit.scope, limit.name, limit.qpu or "", limit.per, limit.unit))
    has_account = any(limit.scope == "account" for limit in found)
    members = account_members(account) if has_account and account is not None else None
    return [find_usage(ledger, limit, user, today(), members) for limit in found]


def _own_usages(ledger: Ledger, me: str, qpu: str | None) -> list[Usage]:
    """Return how much is used of the budgets of the user's open stages."""
    from qrmi_workflows.budgets.allowance import find_usage, today
    from qrmi_workflows.lease.allowances import limit_of_stage
    from qrmi_workflows.lease.stage import list_stages

    stages = [stage for stage in list_stages() if stage.budget and not stage.is_ended]
    return [
        find_usage(ledger, limit_of_stage(stage), me, today())
        for stage in stages
        if qpu in (None, stage.qpu)
    ]


def _row(usage: Usage) -> list[object]:
    from qrmi_workflows.budgets.limits import render_amount

    limit = usage.limit
    amounts = (limit.amount, usage.spent, usage.reserved, usage.left)
    rendered = [render_amount(limit.unit, amount) for amount in amounts]
    return [limit.describe(), limit.qpu or "all", limit.per, *rendered, usage.ends]


def _document(usage: Usage) -> dict[str, object]:
    limit = usage.limit
    factor = 1 if limit.unit == "shots" else 1000
    amounts = {
        "limit": limit.amount,
        "spent": usage.spent,
        "reserved": usage.reserved,
        "left": usage.left,
    }
    return {
        "scope": limit.scope,
        "name": limit.name,
        "qpu": limit.qpu,
        "per": limit.per,
        "unit": limit.unit,
        **{name: amount if factor == 1 else amount / factor for name, amount in amounts.items()},
        "ends": usage.ends,
    }
