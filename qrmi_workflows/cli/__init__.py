"""The `qpu` command: thin over the API, one file for each group of commands."""

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

_EPILOG = """\b
Exit codes: 0 done; 1 failed, another try may help; 2 the request is wrong;
128+N ended by signal N.

\b
Variables:
  QPU_CONFIG        the QPUs: qrmi_config.json
  QPU_SITE          how the site grants them: site.toml
  QPU_STATE         the journal and the leases; on a shared file system
  QPU_STEP          the step's name: a rerun finds its tasks again
  QPU_LANES         how many tasks of a lease run at once
  QPU_JOURNAL_DAYS  how long the journal keeps what does not change (90)
"""


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


@click.group(
    cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="qrmi-workflows", prog_name="qpu")
def qpu() -> None:
    """Quantum computers in HPC workflows: ask for a QPU, hold it, run on it, give it back."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `qpu` command; every error is one message and an exit code."""
    logging.basicConfig(format="qpu: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and steps may have any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    if "RUST_LOG" not in os.environ:  # who sets it wants to see what the client says
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_not_the_clients)
    args = None if argv is None else list(argv)
    try:
        code = qpu.main(args, prog_name="qpu", standalone_mode=False)
    except QPUError as error:
        _leave(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        _leave(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _is_not_the_clients(record: logging.LogRecord) -> bool:
    """Leave out what QRMI's client logs: our errors say it, or it is of no use (a dummy token)."""
    return "::" not in record.name and record.name.partition(".")[0] != "qrmi"


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"qpu: {message}", err=True)
    sys.exit(code)
