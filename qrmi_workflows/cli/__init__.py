"""The `qpu` command: a thin layer over the API, with one file for each group of commands."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from qrmi_workflows.cli.types import Group
from qrmi_workflows.config.variables import USER_VARIABLES
from qrmi_workflows.errors import QPUError

__all__ = ["main"]

_COMMANDS = {
    "emulator": "qrmi_workflows.cli.emulator:emulator",
    "journal": "qrmi_workflows.cli.journal:journal",
    "lease": "qrmi_workflows.cli.lease:lease",
    "list": "qrmi_workflows.cli.qpus:list_qpus",
    "reap": "qrmi_workflows.cli.reap:reap",
    "result": "qrmi_workflows.cli.result:result",
    "run": "qrmi_workflows.cli.run:run",
    "sandbox": "qrmi_workflows.cli.sandbox:sandbox",
    "target": "qrmi_workflows.cli.qpus:target",
}

_EPILOG = "\b\n" + "\n".join(
    (
        "Exit codes: 0 success; 1 failure, a retry may succeed; 2 invalid request;",
        "128+N ended by signal N.",
        "",
        "\b",
        "Variables:",
        *(f"  {name:<17} {meaning}" for name, meaning in USER_VARIABLES.items()),
    )
)


class _LazyGroup(Group):
    """Imports a command's module when it is used, because `qpu lease exec` starts in every job."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all names without importing anything."""
        return sorted(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name]} is not a command")
        return command


@click.group(
    cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="qrmi-workflows", prog_name="qpu")
def qpu() -> None:
    """Use quantum computers in HPC workflows: lease a QPU, run tasks on it, release it."""
    from qrmi_workflows.schedulers.inherited import discard_inherited_leases

    discard_inherited_leases()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `qpu` command; turn every error into one message and an exit code."""
    logging.basicConfig(format="qpu: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and steps may contain any byte
        sys.stdout.reconfigure(errors="backslashreplace")
    if "RUST_LOG" not in os.environ:  # set by users who want to see the client's log
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_not_from_client)
    args = None if argv is None else list(argv)
    try:
        code = qpu.main(args, prog_name="qpu", standalone_mode=False)
    except QPUError as error:
        _exit(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        _exit(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _is_not_from_client(record: logging.LogRecord) -> bool:
    """Drop the log of QRMI's client: our errors repeat what matters in it."""
    return "::" not in record.name and record.name.partition(".")[0] != "qrmi"


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"qpu: {message}", err=True)
    sys.exit(code)
