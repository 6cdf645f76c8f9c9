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

from qrmi_workflows.errors import SandboxError

if TYPE_CHECKING:
    from qrmi_workflows.sandbox import Sandbox, SandboxStatus

__all__ = ["sandbox"]

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The sandbox's folder [default: $QPU_SANDBOX, or one under ~/.local/state].",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def sandbox() -> None:
    """A site in miniature: Slurm of your own, and emulated QPUs."""


@sandbox.command()
@_directory
@click.option("--nodes", type=click.IntRange(1, 16), help="How many nodes [default: 2].")
@click.option("--qpu", "qpus", multiple=True, metavar="NAME=TYPE[:MODEL]", help="Emulate this QPU.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The emulator's settings, a TOML file.",
)
def up(directory: Path | None, nodes: int | None, qpus: Sequence[str], config: Path | None) -> None:
    """Start it, or whatever of it is gone."""
    box = _sandbox(directory)
    healed = box.status().state == "broken"
    started = box.up(nodes=nodes, qpus=qpus, config=config)
    what = f"up again: {', '.join(started)} restarted" if healed else "up"
    click.echo(f"The sandbox in {box.directory} is {what if started else 'up already'}.")
    click.echo(
        '`qpu sandbox shell` works in it, `eval "$(qpu sandbox env)"` leads this shell to it, '
        "`qpu sandbox down` ends it."
    )


@sandbox.command()
@_directory
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds that jobs may take to end by themselves.",
)
def down(directory: Path | None, grace: float) -> None:
    """Cancel its jobs and end it."""
    box = _sandbox(directory)
    ended = box.down(grace=grace)
    click.echo(f"The sandbox in {box.directory} is down{'' if ended else ' already'}.")


@sandbox.command()
@_directory
@_json
@click.pass_context
def status(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """Show its daemons; exit code 0 when it is up, else 1."""
    found = _sandbox(directory).status()
    click.echo(_as_json(found) if as_json else _as_text(found))
    ctx.exit(0 if found.state == "up" else 1)


@sandbox.command()
@_directory
@_json
def env(directory: Path | None, as_json: bool) -> None:
    r"""Print what leads a shell to it: eval "$(qpu sandbox env)"."""
    variables = _running(directory).environment()
    if as_json:
        click.echo(json.dumps(variables, indent=2))
    else:
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command(context_settings={"ignore_unknown_options": True})
@_directory
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(directory: Path | None, command: Sequence[str]) -> None:
    """Open a shell in it, or run COMMAND in it."""
    environ = {**os.environ, **_running(directory).environment()}
    argv = command or (os.environ.get("SHELL") or "/bin/sh",)
    try:
        os.execvpe(argv[0], list(argv), environ)  # noqa: S606 - takes this process's place
    except OSError as error:
        raise SandboxError(
            f"{argv[0]!r}: {error.strerror}. Name a command that is on PATH."
        ) from error


def _sandbox(directory: Path | None) -> Sandbox:
    from qrmi_workflows.vendors import needs_extra

    with needs_extra("emulator"):
        from qrmi_workflows.sandbox import Sandbox
    return Sandbox(directory)


def _running(directory: Path | None) -> Sandbox:
    box = _sandbox(directory)
    if box.status().state == "down":
        raise SandboxError(f"the sandbox in {box.directory} is down. Run `qpu sandbox up`.")
    return box


def _as_json(found: SandboxStatus) -> str:
    return json.dumps(asdict(found), indent=2, default=str)


def _as_text(found: SandboxStatus) -> str:
    lines = [f"The sandbox in {found.directory} is {found.state}."]
    if found.qpus:
        lines.append(f"  QPUs: {', '.join(found.qpus)}")
    for daemon in found.daemons:
        port = f" port {daemon.port}" if daemon.port else ""
        how = f"pid {daemon.pid}{port}" if daemon.alive else "GONE"
        lines.append(f"  {daemon.name:<12} {how}")
    if found.dead:
        lines.append(f"{', '.join(found.dead)} ended; `qpu sandbox up` starts what is gone.")
    return "\n".join(lines)
