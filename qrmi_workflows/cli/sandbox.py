"""`qpu sandbox`: a personal Slurm cluster with emulated QPUs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.types import Group
from qrmi_workflows.errors import SandboxError

if TYPE_CHECKING:
    from qrmi_workflows.sandbox import Sandbox, SandboxStatus

__all__ = ["sandbox"]

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The sandbox's directory [default: $QPU_SANDBOX, or one under ~/.local/state].",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group)
def sandbox() -> None:
    """Run a personal Slurm cluster with emulated QPUs."""


@sandbox.command()
@_directory
@click.option(
    "--nodes",
    type=click.IntRange(1, 16),
    help="Number of nodes [default: 2, or 1 if this Slurm cannot run several on one machine].",
)
@click.option(
    "--qpu",
    "qpus",
    multiple=True,
    metavar="NAME=TYPE[:MODEL]",
    help="A QPU to emulate; may be repeated. See `qpu emulator serve --help`.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The emulator's settings file (TOML). See `qpu emulator serve --help`.",
)
@click.option(
    "--site-scripts",
    is_flag=True,
    help="Let the Prolog and the Epilog that `qpu site install` sets up hold the jobs' QPUs.",
)
@click.option(
    "--accounting",
    is_flag=True,
    help="Keep Slurm's accounts (sacct, sreport) in a database; needs MariaDB and slurmdbd.",
)
def up(
    directory: Path | None,
    nodes: int | None,
    qpus: Sequence[str],
    config: Path | None,
    site_scripts: bool,
    accounting: bool,
) -> None:
    """Start the sandbox, or restart daemons that have died."""
    box = _sandbox(directory)
    before = box.status()
    started = box.up(
        nodes=nodes,
        qpus=qpus,
        config=config,
        site_scripts=site_scripts or None,
        accounting=accounting or None,
    )
    is_repaired = before.state == "broken" and before.daemons
    outcome = f"up again: {', '.join(started)} restarted" if is_repaired else "up"
    click.echo(f"The sandbox in {box.directory} is {outcome if started else 'already up'}.")
    if remark := box.status().remark:
        click.echo(remark)
    where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
    click.echo(
        f"Enter it with `qpu sandbox shell{where}`, or use it in this shell: "
        f'`eval "$(qpu sandbox env{where})"`. Stop it with `qpu sandbox down{where}`.'
    )


@sandbox.command()
@_directory
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for jobs to end on their own.",
)
def down(directory: Path | None, grace: float) -> None:
    """Cancel all jobs and stop the sandbox."""
    box = _sandbox(directory)
    was_up = box.down(grace=grace)
    click.echo(f"The sandbox in {box.directory} is {'' if was_up else 'already '}down.")


@sandbox.command()
@_directory
@_json
@click.pass_context
def status(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """Show the daemons; the exit code is 0 if the sandbox is up, else 1."""
    report = _sandbox(directory).status()
    click.echo(_as_json(report) if as_json else _as_text(report))
    ctx.exit(0 if report.state == "up" else 1)


@sandbox.command()
@_directory
@_json
def env(directory: Path | None, as_json: bool) -> None:
    r"""Print the variables that select the sandbox in a shell.

    Use it as: eval "$(qpu sandbox env)"
    """
    variables = _require_up(directory).environment()
    if as_json:
        click.echo(json.dumps(variables, indent=2))
    else:
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command(context_settings={"ignore_unknown_options": True})
@_directory
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(directory: Path | None, command: Sequence[str]) -> None:
    """Open a shell in the sandbox, or run COMMAND there."""
    environ = {**os.environ, **_require_up(directory).environment()}
    argv = command or (os.environ.get("SHELL") or "/bin/sh",)
    try:
        os.execvpe(argv[0], list(argv), environ)  # noqa: S606 - replaces this process
    except OSError as error:
        raise SandboxError(
            f"{argv[0]!r}: {error.strerror}. Name a command that is on PATH."
        ) from error


def _sandbox(directory: Path | None) -> Sandbox:
    from qrmi_workflows.vendors.base import needs_extra

    with needs_extra("emulator"):
        from qrmi_workflows.sandbox import Sandbox
    return Sandbox(directory)


def _require_up(directory: Path | None) -> Sandbox:
    box = _sandbox(directory)
    report = box.status()
    if report.state == "down" or report.problem:
        state = f"{report.state}: {report.problem}" if report.problem else report.state
        raise SandboxError(f"the sandbox in {box.directory} is {state}. Run `qpu sandbox up`.")
    return box


def _as_json(report: SandboxStatus) -> str:
    return json.dumps(asdict(report), indent=2, default=str)


def _as_text(report: SandboxStatus) -> str:
    problem = f": {report.problem}" if report.problem else ""
    lines = [f"The sandbox in {report.directory} is {report.state}{problem}."]
    if report.remark:
        lines.append(report.remark)
    if report.qpus:
        lines.append(f"  QPUs: {', '.join(report.qpus)}")
    for daemon in report.daemons:
        port = f" port {daemon.port}" if daemon.port else ""
        state = f"pid {daemon.pid}{port}" if daemon.alive else "DEAD"
        lines.append(f"  {daemon.name:<12} {state}")
    if report.problem:
        lines.append("Start it again with `qpu sandbox up`, or stop it with `qpu sandbox down`.")
    elif report.dead:
        lines.append(f"Restart {', '.join(report.dead)} with `qpu sandbox up`.")
    return "\n".join(lines)
