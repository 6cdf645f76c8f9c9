"""`qpu list` and `qpu target`: what this site offers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from qrmi_workflows.cli.spans import Span
from qrmi_workflows.config import QPUDefinition, QPUPolicy, load_qpus, load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError

__all__ = ["list_qpus", "target"]

_STATUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One QPU of the table."""

    name: str
    type: str
    state: str
    pending: int | None
    gres: str | None
    licence: str | None


@click.command("list")
@click.option(
    "--config", type=click.Path(path_type=Path), help="qrmi_config.json; else $QPU_CONFIG."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_qpus(config: Path | None, as_json: bool) -> None:
    """Show the QPUs that can be asked for here, and their state.

    State is the vendor's word (online, paused, offline), or why there is none. GRES and licence are
    what a job asks Slurm for; a QPU without them is not offered through Slurm.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        rows = list(pool.map(_describe, _pairs(config).items()))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print(rows)


@click.command()
@click.argument("qpu", metavar="NAME", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; else stdout.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="qrmi_config.json; else $QPU_CONFIG."
)
@click.option("--refresh", is_flag=True, help="Ask the vendor, also when it is in the cache.")
@click.option(
    "--max-age",
    type=Span(876000.0),
    default=6.0,
    show_default=True,
    metavar="HOURS",
    help="How old one from the cache may be.",
)
def target(
    qpu: str | None, output: Path | None, config: Path | None, refresh: bool, max_age: float
) -> None:
    """Tell what the QPU NAME can do, as its vendor's JSON. Needs no lease.

    For IBM that is the backend's configuration and properties: transpile for it anywhere. It is
    kept in the user's cache (`$XDG_CACHE_HOME`), so that most calls ask no vendor.
    """
    from qrmi_workflows.acquire import find_qpu
    from qrmi_workflows.cli.outputs import require_writable
    from qrmi_workflows.results import write_whole
    from qrmi_workflows.targets import fetch_target

    if output is not None:
        require_writable(output)
    found = fetch_target(find_qpu(qpu, config=config), refresh=refresh, max_age_hours=max_age)
    calibrated = f"calibrated {found.calibrated}, " if found.calibrated else ""
    click.echo(f"target of {found.qpu}: {calibrated}fetched {found.fetched}", err=True)
    if output is None:
        click.echo(found.text)
    else:
        write_whole(output, found.text + "\n")


_Pair = tuple[QPUDefinition | None, QPUPolicy | None]


def _pairs(config: Path | None) -> dict[str, _Pair]:
    """Pair each QPU that is defined here, or offered by the scheduler, with its policy."""
    try:
        offered = dict(load_site_policy().qpus)
    except ConfigError:
        offered = {}
    try:
        defined = load_qpus(config)
    except ConfigError:
        if config is not None or not offered:
            raise
        defined = {}  # a site whose SPANK plugin alone reads the definitions
    names = sorted({*defined, *offered})
    return {name: (defined.get(name), offered.get(name)) for name in names}


def _describe(item: tuple[str, _Pair]) -> _Row:
    name, (definition, policy) = item
    state, pending = ("unknown: known to the scheduler alone", None)
    if definition is not None:
        state, pending = _ask(definition)
    return _Row(
        name=name,
        type=definition.type if definition else "",
        state=state,
        pending=pending,
        gres=policy.gres if policy else None,
        licence=policy.licence if policy else None,
    )


def _ask(definition: QPUDefinition) -> tuple[str, int | None]:
    from qrmi_workflows.resource import QRMIResource

    try:
        resource = QRMIResource(
            definition.name,
            definition.type,
            definition.environment,
            deadlines={"status": _STATUS_SECONDS},
        )
        status = resource.status()
    except QPUError as error:
        return f"unknown: {error}", None
    return str(status.status).rpartition(".")[2].lower(), status.pending_job_count


def _print(rows: list[_Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("QPU", "TYPE", "STATE", "PENDING", "GRES", "LICENCE"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (row.name, row.type, row.state, row.pending, row.gres, row.licence)
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    Console(soft_wrap=False).print(table)
