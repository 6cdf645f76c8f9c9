"""The `qpu` command: a thin layer over the API, with one file for each group of commands."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import click

from qrmi_workflows.cli.types import Group
from qrmi_workflows.config.variables import USER_VARIABLES
from qrmi_workflows.errors import QPUError
from qrmi_workflows.state.signals import handle_ctrl_c

__all__ = ["main"]

_COMMANDS = {
    "budget": (
        "qrmi_workflows.cli.budget:budget",
        "Show and set what tasks may take: shots or QPU time.",
    ),
    "doctor": (
        "qrmi_workflows.cli.doctor:doctor",
        "Find what is misconfigured at this site, and say what to do.",
    ),
    "emulator": (
        "qrmi_workflows.cli.emulator:emulator",
        "Emulate QPUs behind their vendors' HTTP APIs.",
    ),
    "journal": ("qrmi_workflows.cli.journal:journal", "Show and forget recorded tasks."),
    "lease": ("qrmi_workflows.cli.lease:lease", "Hold a QPU while a command runs."),
    "list": ("qrmi_workflows.cli.qpus:list_qpus", "List the QPUs of this site and their states."),
    "reap": ("qrmi_workflows.cli.reap:reap", "Release your leases whose processes have died."),
    "request": (
        "qrmi_workflows.cli.request:request",
        "Print the scheduler's options for a job that uses a QPU.",
    ),
    "result": ("qrmi_workflows.cli.result:result", "Decode results in files and in the journal."),
    "run": ("qrmi_workflows.cli.run:run", "Run the task in the file PAYLOAD and write its result."),
    "sandbox": (
        "qrmi_workflows.cli.sandbox:sandbox",
        "Run a personal Slurm cluster with emulated QPUs.",
    ),
    "site": (
        "qrmi_workflows.cli.site:site",
        "Set up a site's scheduler for QPUs, and take QPUs out of service.",
    ),
    "stage": ("qrmi_workflows.cli.stage:stage", "Share the lease of a QPU between several jobs."),
    "target": (
        "qrmi_workflows.cli.qpus:target",
        "Print a QPU's target: its capabilities, as JSON.",
    ),
    "usage": (
        "qrmi_workflows.cli.usage:usage",
        "Show how long QPUs were held, busy and idle, and what looks wrong.",
    ),
}
"""Each command's object and the beginning of its help."""

_EPILOG = "\b\n" + "\n".join(
    (
        "Exit codes: 0 success; 1 failure, a retry may succeed; 2 invalid request;",
        "75 the step needs a job on its next QPU; 128+N ended by signal N.",
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
        module, name = _COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name][0]} is not a command")
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Describe all commands without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(
    cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="qrmi-workflows", prog_name="qpu")
def qpu() -> None:
    """Use quantum computers in HPC workflows: lease a QPU, run tasks on it, release it."""
    from qrmi_workflows.schedulers.inherited import discard_inherited_leases

    discard_inherited_leases()


def main(
    argv: Sequence[str] | None = None, *, await_lease: Callable[[], None] | None = None
) -> NoReturn:
    """Run the `qpu` command; turn every error into one message and an exit code.

    Args:
        argv: The command line; that of the process if `None`.
        await_lease: For `qpu run`: called once its input is found to be valid. It waits for the
            lease, and brings its variables into the environment.
    """
    handle_ctrl_c()
    logging.basicConfig(format="qpu: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and steps may contain any byte
        sys.stdout.reconfigure(errors="backslashreplace")
    if "RUST_LOG" not in os.environ:  # set by users who want to see the client's log
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_not_from_client)
    args = None if argv is None else list(argv)
    try:
        code = qpu.main(args, prog_name="qpu", standalone_mode=False, obj=await_lease)
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
