"""`qpu list` and `qpu target`: show the QPUs of this site."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import (
    CONFIG_OPTION,
    JSON_OPTION,
    Command,
    Duration,
    constraint_options,
)
from qrmi_workflows.config.job import JobQPU, read_job
from qrmi_workflows.config.notices import Notice, read_notices
from qrmi_workflows.config.qpus import QPUDefinition, load_dynamic, load_qpus
from qrmi_workflows.config.site import QPUPolicy, SitePolicy, find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError, RequestError

if TYPE_CHECKING:
    from qrmi_workflows.client.states import Answer
    from qrmi_workflows.schedulers.admission import Capacity

__all__ = ["list_qpus", "target"]

_STATUS_SECONDS = 10.0
_SCHEDULER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A row of the table."""

    name: str
    type: str
    state: str
    pending: int | None
    gres: str | None
    licence: str | None
    operational: bool | None
    free: int | None
    units: int | None
    available: bool | None
    reason: str

    def cells(self) -> tuple[object, ...]:
        """Return the cells of its row."""
        free = None if self.free is None else f"{self.free} of {self.units}"
        word = {True: "yes", False: "no", None: "unknown"}[self.available]
        available = f"{word}: {self.reason}" if self.reason else word
        kind = (self.name, self.type, self.state, self.pending)
        return (*kind, free, available, self.gres, self.licence)


@click.command("list", cls=Command)
@click.argument("request", metavar="[REQUEST]", required=False)
@constraint_options
@CONFIG_OPTION
@JSON_OPTION
def list_qpus(
    request: str | None,
    min_qubits: int | None,
    type_: str | None,
    where: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """List the QPUs of this site and their states.

    With REQUEST or a condition, list the QPUs in the order in which they would be chosen, and what
    each of the others lacks. AHEAD is how many tasks and jobs are ahead of a new one.

    In a job, its own QPUs are those that its environment describes.

    An entry of qrmi_config.json with `is_dynamic` stands for all QPUs of an account, which are
    listed under their own names.

    STATE is the vendor's answer (online, paused, offline), or the reason why it is unknown. FREE is
    how many of the QPU's units no job holds. AVAILABLE is whether it can be acquired now, or why
    not: a QPU may be operational and busy, or free and in maintenance. GRES and LICENCE are what a
    job requests from Slurm; a QPU without them is not available through Slurm.
    """
    from qrmi_workflows.config.constraints import parse_qpus
    from qrmi_workflows.lease.grants import granted_qpus

    if (request, min_qubits, type_, where) != (None, None, None, None):
        from qrmi_workflows.cli.fitting import list_fitting

        asked_for = parse_qpus(request, min_qubits=min_qubits, type=type_, where=where)
        if len(asked_for) > 1:
            raise RequestError(
                f"{request!r} asks for {len(asked_for)} QPUs; must be a request for one. List the "
                "candidates for each of them."
            )
        list_fitting(asked_for[0], config=config, as_json=as_json)
        return
    site = _find_site()
    offered = {} if site is None else dict(site.qpus)
    with ThreadPoolExecutor(max_workers=18) as pool:
        capacities = pool.submit(_capacities, site)
        granted = pool.submit(granted_qpus)
        notices = {} if site is None else read_notices(site)
        found = _find_qpus(config, offered)
        asked = {name: pool.submit(_ask, definition) for name, (definition, _) in found.items()}
        rows = [
            _describe(
                name,
                entry,
                asked[name].result(),
                notices.get(name),
                capacities.result().get(name),
                is_granted=name in granted.result(),
            )
            for name, entry in found.items()
        ]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        headings = ("QPU", "TYPE", "STATE", "PENDING", "FREE", "AVAILABLE", "GRES", "LICENCE")
        print_table(headings, (row.cells() for row in rows))


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
    from qrmi_workflows.client.targets import cached_target, fetch_target
    from qrmi_workflows.lease.acquire import find_qpu
    from qrmi_workflows.lease.emulated import reachable
    from qrmi_workflows.state.files import write_atomically

    if output is not None:
        require_writable(output)
    asked = find_qpu(qpu, config=config)
    found = None if refresh else cached_target(asked, max_age_hours=max_age)
    if found is None:
        with reachable(asked) as answering:
            found = fetch_target(answering, refresh=True)
    calibrated = f"calibrated {found.calibrated}, " if found.calibrated else ""
    click.echo(f"target of {found.qpu}: {calibrated}fetched {found.fetched}", err=True)
    if output is None:
        click.echo(found.text)
    else:
        write_atomically(output, found.text + "\n")


_Told = tuple["Answer | None", str, int | None]
_Entry = tuple[QPUDefinition | JobQPU | QPUError | None, QPUPolicy | None]


def _find_qpus(config: Path | None, offered: Mapping[str, QPUPolicy]) -> dict[str, _Entry]:
    """Return the definition and the site's policy of each QPU, by name."""
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


def _find_site() -> SitePolicy | None:
    """Return the site policy; a mistake in it is reported, and nothing is on offer."""
    try:
        path = find_site_policy()
    except ConfigError:
        return None
    try:
        return load_site_policy(path)
    except ConfigError as error:
        click.echo(f"qpu: {error}", err=True)
        return None


def _capacities(site: SitePolicy | None) -> Mapping[str, Capacity]:
    """Return what the scheduler has free; nothing if it cannot be asked, as in a container."""
    from qrmi_workflows.schedulers import scheduler_of

    if site is None:
        return {}
    try:
        admission = scheduler_of(site).admission()
        return {} if admission is None else admission.capacities(site, timeout=_SCHEDULER_SECONDS)
    except QPUError:
        return {}


def _expand(account: QPUDefinition) -> Mapping[str, QPUDefinition | QPUError]:
    """Return the QPUs of a dynamic definition; if they cannot be listed, the reason instead."""
    from qrmi_workflows.client.discovery import list_discovered

    try:
        return {each.name: each for each in list_discovered(account)}
    except QPUError as error:
        return {account.name: error}


def _ask(definition: QPUDefinition | JobQPU | QPUError | None) -> _Told:
    """Return what the vendor says: its answer, the state to show, and the pending tasks."""
    from qrmi_workflows.client.failures import TRY_LATER
    from qrmi_workflows.client.states import ask_state

    if definition is None:
        return None, "unknown: no definition of the QPU can be read", None
    if isinstance(definition, QPUError):
        return None, f"unknown: {definition}", None
    try:
        answer = ask_state(definition, seconds=_STATUS_SECONDS)
    except QPUError as error:
        return None, f"unknown: {error}".removesuffix(f" {TRY_LATER}"), None
    return answer, answer.state, answer.queue


def _describe(
    name: str,
    entry: _Entry,
    told: _Told,
    notice: Notice | None,
    capacity: Capacity | None,
    *,
    is_granted: bool,
) -> _Row:
    from qrmi_workflows.choice.availability import availability

    definition, policy = entry
    answer, state, pending = told
    found = availability(answer, notice, capacity)
    is_held = isinstance(definition, JobQPU) and definition.token is not None
    if is_held or (is_granted and found.operational and notice is None):
        found = replace(found, available=True, reason="this job holds it")
    elif definition is None or isinstance(definition, QPUError):
        found = replace(found, reason=found.reason if notice else "")
    return _Row(
        name=name,
        type=getattr(definition, "type", ""),
        state=state,
        pending=pending,
        gres=policy.gres if policy else None,
        licence=policy.licence if policy else None,
        **asdict(found),
    )
