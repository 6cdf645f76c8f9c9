"""`qpu site maintenance` and `qpu site reconcile`: which QPUs start no job at the moment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import CONFIG_OPTION, JSON_OPTION, Command, Seconds

if TYPE_CHECKING:
    from qrmi_workflows.config.notices import Notice
    from qrmi_workflows.site.admission import Applied
    from qrmi_workflows.site.reconcile import Reconciled

__all__ = ["maintenance", "reconcile"]

_SHORTEST_PAUSE = 1.0


@click.command(cls=Command)
@click.argument("arguments", metavar="[NAME... on|off]", nargs=-1)
@click.option("--message", metavar="TEXT", help="With `on`: the reason, which users see.")
@JSON_OPTION
def maintenance(arguments: tuple[str, ...], message: str | None, as_json: bool) -> None:
    """Take QPUs out of service, or put them back.

    Without arguments, list the QPUs that are away. While a QPU is in maintenance, its jobs stay
    pending, new ones can be submitted, and running ones go on. Everything that would acquire the
    QPU is refused with the message. The command is for root and the owner of site.toml. It is safe
    to repeat, also with another message.

    The exit code is 1 if the scheduler could not be changed; repeat the command then. The QPUs are
    in maintenance all the same.

    \b
    Example:
      qpu site maintenance ibm_fez FRESNEL on --message "Cooling until Friday"
    """  # noqa: D301
    from qrmi_workflows.config.notices import read_notices
    from qrmi_workflows.config.site import load_site_policy
    from qrmi_workflows.site.maintenance import end_maintenance, start_maintenance

    if not arguments:
        if message is not None:
            raise click.UsageError("--message is for `on`. Name a QPU, and `on`.")
        _print_notices(read_notices(load_site_policy()), as_json=as_json)
        return
    *qpus, switch = arguments
    if switch not in ("on", "off") or not qpus:
        raise click.UsageError(
            f"{' '.join(arguments)!r}: must be one or more names of QPUs, and `on` or `off` after "
            "them."
        )
    site = load_site_policy()
    if switch == "off":
        if message is not None:
            raise click.UsageError("--message is for `on`. Leave it out.")
        applied = end_maintenance(qpus, site)
    else:
        if not message:
            raise click.UsageError('`on` needs --message "…": users see why the QPU is away.')
        applied = start_maintenance(qpus, message, site)
    if as_json:
        click.echo(json.dumps(_document(applied), indent=1))
    else:
        _print_applied(applied)
    sys.exit(1 if applied.errors else 0)


@click.command(cls=Command)
@click.option(
    "--every",
    type=Seconds(),
    metavar="SECONDS",
    help="Repeat at this interval, instead of running once.",
)
@click.option(
    "--patience",
    type=Seconds(),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a QPU keeps its state while its vendor is silent; after that, it is away.",
)
@CONFIG_OPTION
@JSON_OPTION
def reconcile(every: float | None, patience: float, config: Path | None, as_json: bool) -> None:
    """Keep jobs pending while their QPU is not operational.

    It asks each vendor for the state of its QPU. The jobs of QPUs that are offline, paused or in
    maintenance stay pending, and start when the QPU is back. What was set with `qpu site
    maintenance NAME on` stays until it is set to off. A vendor that does not answer has not said
    that its QPU is offline, so the QPU keeps its state for a while (--patience).

    The command is for root and the owner of site.toml, for a timer or with --every. It is safe to
    run several times at once, and to kill. It prints changes and problems; the exit code is 1 if
    the scheduler could not be changed.
    """
    from qrmi_workflows.config.site import load_site_policy
    from qrmi_workflows.errors import QPUError
    from qrmi_workflows.site.reconcile import reconcile as run

    while True:
        try:
            # Each time: the site policy may have changed.
            done = run(load_site_policy(), config, patience=patience)
        except QPUError as error:
            if every is None:
                raise
            click.echo(f"qpu: {error}", err=True)
        else:
            _print_reconciled(done, as_json=as_json)
            if every is None:
                sys.exit(1 if done.applied.errors else 0)
        time.sleep(max(every, _SHORTEST_PAUSE))


def _print_notices(notices: Mapping[str, Notice], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(each) for each in notices.values()], indent=1))
        return
    rows = [
        (each.qpu, "by hand" if each.by_hand else "by state", each.since_text, each.message)
        for each in notices.values()
    ]
    print_table(("QPU", "AWAY", "SINCE", "MESSAGE"), rows)


def _document(applied: Applied) -> dict[str, object]:
    return {
        "away": [
            {
                **asdict(each),
                "kept_pending_by": applied.ways.get(name),
                "not_kept_pending": applied.unsupported.get(name),
            }
            for name, each in applied.notices.items()
        ],
        "changes": list(applied.changes),
        "errors": dict(applied.errors),
    }


def _print_applied(applied: Applied) -> None:
    for change in applied.changes:
        click.echo(change)
    for qpu, reason in applied.unsupported.items():
        click.echo(f"qpu: QPU {qpu!r}: {reason}.", err=True)
    for qpu, problem in applied.errors.items():
        click.echo(f"qpu: QPU {qpu!r}: {problem}", err=True)


def _print_reconciled(done: Reconciled, *, as_json: bool) -> None:
    silent = {name: each for name, each in done.answers.items() if isinstance(each, str)}
    if as_json:
        states = {
            name: {"state": None, "problem": each}
            if isinstance(each, str)
            else {"state": each.state, "problem": None}
            for name, each in done.answers.items()
        }
        click.echo(json.dumps({"qpus": states, **_document(done.applied)}, indent=1))
        return
    for name, problem in silent.items():
        click.echo(f"qpu: QPU {name!r}: {problem}", err=True)
    _print_applied(done.applied)
