"""The `qpu` command: thin over the API, one file for each group of commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from qrmi_workflows.errors import QPUError

__all__ = ["main"]

_COMMANDS = {
    "emulator": "qrmi_workflows.cli.emulator:emulator",
    "journal": "qrmi_workflows.cli.journal:journal",
    "lease": "qrmi_workflows.cli.lease:lease",
    "list": "qrmi_workflows.cli.qpus:list_qpus",
    "reap": "qrmi_workflows.cli.reap:reap",
    "run": "qrmi_workflows.cli.run:run",
    "sandbox": "qrmi_workflows.cli.sandbox:sandbox",
    "target": "qrmi_workflows.cli.qpus:target",
}


class _LazyGroup(click.Group):
    """Imports a command's module when it is used: `qpu lease exec` starts in every job."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all names, without importing anything."""
        return sorted(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name]} is no command")
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qrmi-workflows", prog_name="qpu")
def qpu() -> None:
    """Quantum computers in HPC workflows: ask for a QPU, hold it, run on it, give it back."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `qpu` command; every error of ours is one message and an exit code."""
    try:
        qpu(args=None if argv is None else list(argv), prog_name="qpu")
    except QPUError as error:
        click.echo(f"qpu: {error}", err=True)
        sys.exit(error.exit_code)
