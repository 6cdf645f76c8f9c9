"""`qpu list` and `qpu target`: show the QPUs of this site."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import CONFIG_OPTION, JSON_OPTION, Command, Duration
from qrmi_workflows.config.job import JobQPU, read_job
from qrmi_workflows.config.qpus import QPUDefinition, load_dynamic, load_qpus
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError

__all__ = ["list_qpus", "target"]

_STATUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A row of the table."""

    name: str
    type: str
    state: str
    pending: int | None
    gres: str | None
    licence: str | None


@click.command("list", cls=Command)
@CONFIG_OPTION
@JSON_OPTION
def list_qpus(config: Path | None, as_json: bool) -> None:
    """List the QPUs of this site and their states.

    In a job, its own QPUs are those that its environment describes.

    An entry of qrmi_config.json with `is_dynamic` stands for all QPUs of an account, which are
    listed under their own names.

    STATE is the vendor's answer (online, paused, offline), or the reason why it is unknown. GRES
    and LICENCE are what a job requests from Slurm; a QPU without them is not available through
    Slurm.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        rows = list(pool.map(_describe, _find_qpus(config).items()))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        headings = ("QPU", "TYPE", "STATE", "PENDING", "GRES", "LICENCE")
        print_table(headings, map(astuple, rows))


@click.command(cls=Command)
@click.argument("qpu", metavar="NAME", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE instead of stdout.",
)
@CONFIG_OPTION
@click.option(
    "--refresh", is_flag=True, help="Fetch the target from the vendor even if it is cached."
)
@click.option(
    "--max-age",
    type=Duration(876000.0),
    default=6.0,
    show_default=True,
    metavar="HOURS",
    help="Maximum age of a cached target.",
)
def target(
    qpu: str | None, output: Path | None, config: Path | None, refresh: bool, max_age: float
) -> None:
    """Print a QPU's target: its capabilities, as JSON.

    The JSON is the vendor's own. For an IBM QPU, it has the backend's configuration and properties,
    so you can transpile on any machine. No lease is needed. Targets are cached in $XDG_CACHE_HOME,
    so most calls send no request to the vendor.
    """
    from qrmi_workflows.cli.outputs import require_writable
    from qrmi_workflows.client.targets import fetch_target
    from qrmi_workflows.lease.acquire import find_qpu
    from qrmi_workflows.state.files import write_atomically

    if output is not None:
        require_writable(output)
    found = fetch_target(find_qpu(qpu, config=config), refresh=refresh, max_age_hours=max_age)
    calibrated = f"calibrated {found.calibrated}, " if found.calibrated else ""
    click.echo(f"target of {found.qpu}: {calibrated}fetched {found.fetched}", err=True)
    if output is None:
        click.echo(found.text)
    else:
        write_atomically(output, found.text + "\n")


_Entry = tuple[QPUDefinition | JobQPU | QPUError | None, QPUPolicy | None]


def _find_qpus(config: Path | None) -> dict[str, _Entry]:
    """Return the definition and the site's policy of each QPU, by name."""
    try:
        offered = dict(load_site_policy().qpus)
    except ConfigError:
        offered = {}
    carried = read_job() if config is None else {}
    defined: dict[str, QPUDefinition | JobQPU | QPUError] = {}
    try:
        for account in load_dynamic(config).values():
            defined |= _expand(account)
        defined.update(load_qpus(config))
    except ConfigError:
        # At some sites, only the SPANK plugin may read qrmi_config.json.
        if not (offered or carried) or config is not None:
            raise
    defined.update(carried)
    names = sorted({*defined, *offered})
    return {name: (defined.get(name), offered.get(name)) for name in names}


def _expand(account: QPUDefinition) -> Mapping[str, QPUDefinition | QPUError]:
    """Return the QPUs of a dynamic definition; if they cannot be listed, the reason instead."""
    from qrmi_workflows.client.discovery import list_discovered

    try:
        return {each.name: each for each in list_discovered(account)}
    except QPUError as error:
        return {account.name: error}


def _describe(item: tuple[str, _Entry]) -> _Row:
    name, (definition, policy) = item
    state, pending = ("unknown: no definition of the QPU can be read", None)
    if isinstance(definition, QPUError):
        state = f"unknown: {definition}"
    elif definition is not None:
        state, pending = _fetch_status(definition)
    return _Row(
        name=name,
        type=getattr(definition, "type", ""),
        state=state,
        pending=pending,
        gres=policy.gres if policy else None,
        licence=policy.licence if policy else None,
    )


def _fetch_status(definition: QPUDefinition | JobQPU) -> tuple[str, int | None]:
    """Return the QPU's state and its number of pending tasks."""
    from qrmi_workflows.client.failures import TRY_LATER
    from qrmi_workflows.client.resource import QRMIResource

    try:
        resource = QRMIResource(
            definition.name,
            definition.type,
            definition.environment,
            deadlines={"status": _STATUS_SECONDS},
        )
        status = resource.status()
    except QPUError as error:
        return f"unknown: {error}".removesuffix(f" {TRY_LATER}"), None
    return str(status.status).rpartition(".")[2].lower(), status.pending_job_count
