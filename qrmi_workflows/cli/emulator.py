"""`qpu emulator`: emulated QPUs without a scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from qrmi_workflows.cli.types import Group

__all__ = ["emulator"]

_FOLDER = Path("qpu-emulator")


class _ServeByDefault(Group):
    """A group whose default command is `serve`: `qpu emulator --port 8000` works without it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `serve` if the arguments do not start with a command."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=_FOLDER,
    show_default=True,
    help="The emulator's state folder.",
)


@click.group(cls=_ServeByDefault)
def emulator() -> None:
    """Emulate QPUs behind their vendors' HTTP APIs.

    Without a command, this runs `serve`.
    """


@emulator.command()
@_folder_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to bind.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port; by default the one that this folder used last, or else any free port.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file, in TOML.",
)
@click.option(
    "--qpu",
    "qpus",
    multiple=True,
    metavar="NAME=TYPE[:MODEL]",
    help="A QPU to emulate; may be repeated.",
)
@click.option("--seed", type=int, help="Make results reproducible: the seed of all random numbers.")
@click.option("--record", is_flag=True, help="Write every request to requests.jsonl.")
@click.option("--json", "as_json", is_flag=True, help="Announce readiness as one line of JSON.")
def serve(
    folder: Path,
    host: str,
    port: int | None,
    config: Path | None,
    qpus: tuple[str, ...],
    seed: int | None,
    record: bool,
    as_json: bool,
) -> None:
    """Serve emulated QPUs until Ctrl-C or SIGTERM.

    TYPE is alice-bob-felis, ibm-quantum-compute-service, ibm-quantum-system, iqm-server, oqtopus,
    pasqal-cloud, pasqal-local, or a type added by another package. MODEL is a fake backend of
    qiskit-ibm-runtime (fez), an IQM machine (garnet) or a Pulser device (AnalogDevice). By
    default, one IBM QPU and one Pasqal QPU are emulated.

    \b
    Example of a settings file (all keys: qrmi_workflows/emulator/settings_file.py):
      seed = 7                    # the same jobs give the same results
      [qpus.ibm_fez]
      type = "ibm-quantum-compute-service"
      model = "fez"
      lanes = 5                   # tasks prepared in parallel
      execution_seconds = 2.0     # by default, as long as the simulation takes
      noise = true                # the model's calibrated noise
    """  # noqa: D301 - \b tells click not to rewrap a paragraph
    from qrmi_workflows.vendors.base import needs_extra

    with needs_extra("emulator"):
        from qrmi_workflows.emulator.folder import Folder
        from qrmi_workflows.emulator.server import Readiness
        from qrmi_workflows.emulator.server import serve as run_server
        from qrmi_workflows.emulator.settings_file import read_settings

    def announce(ready: Readiness) -> None:
        if as_json:
            text = {"url": ready.url, "config": str(ready.config), "qpus": list(ready.qpus)}
            click.echo(json.dumps(text))
        else:
            click.echo(f"Serving {', '.join(ready.qpus)} at {ready.url}; config: {ready.config}")

    settings = read_settings(config, qpus, seed, record)
    run_server(settings, Folder(folder.resolve()), host, port, announce)


@emulator.command(hidden=True)
@click.argument("qpu", metavar="NAME=TYPE:MODEL")
@click.option("--noisy", is_flag=True, help="With the model's calibrated noise.")
@click.option("--parent", type=int, required=True, help="The process that it does not outlive.")
def private(qpu: str, noisy: bool, parent: int) -> None:
    """Serve one QPU to the process that starts this, and leave nothing on disk."""
    import os
    from dataclasses import replace

    from qrmi_workflows.vendors.base import needs_extra

    with needs_extra("emulator"):
        from qrmi_workflows.emulator.private import serve_private
        from qrmi_workflows.emulator.settings_file import parse_qpu

    def announce(environment: Mapping[str, str]) -> None:
        click.echo(json.dumps(environment))

    serve_private(replace(parse_qpu(qpu), noise=noisy), parent, announce)
    os._exit(0)  # nothing is left to do, and the parent waits


@emulator.command()
@_folder_option
def counters(folder: Path) -> None:
    """Print the number of tasks and sessions by state, as JSON."""
    from qrmi_workflows.emulator.client import Control

    click.echo(json.dumps(Control(folder).counters(), indent=2))


@emulator.command()
@_folder_option
def billing(folder: Path) -> None:
    """Print what the vendors bill in seconds, per QPU, session and task, as JSON."""
    from qrmi_workflows.emulator.client import Control

    click.echo(json.dumps(Control(folder).billing(), indent=2))


@emulator.command()
@_folder_option
@click.argument("name")
@click.argument(
    "availability",
    type=click.Choice(["online", "paused", "offline", "maintenance", "reserved"]),
)
def set(folder: Path, name: str, availability: str) -> None:  # noqa: A001 - the command's name
    """Set a QPU to online, paused, offline, in maintenance, or reserved for others."""
    from qrmi_workflows.emulator.client import Control

    Control(folder).ask("PATCH", f"/qpus/{name}", {"availability": availability})


@emulator.group()
def fault() -> None:
    """Make the emulator fail as a vendor's API might."""


@fault.command("add")
@_folder_option
@click.argument("kind")
@click.option("--route", help="Method and path with wildcards ('POST */jobs'); default: all.")
@click.option("--count", type=int, help="The number of requests to act on; default: all.")
@click.option("--after", type=int, help="The number of matching requests to let pass first.")
@click.option("--when", help="Act `before` (default) or `after` the request is carried out.")
@click.option("--seconds", type=float, help="The duration, for delay, slow and clock-skew.")
@click.option("--status", type=int, help="The HTTP status, for status.")
@click.option("--body", help="The response body, for status.")
@click.option("--retry-after", type=int, help="The Retry-After header in seconds, for status.")
def add_fault(folder: Path, kind: str, **fields: object) -> None:
    """Add a fault rule.

    KIND is status, delay, hold, drop, hang, malformed, slow, expire-tokens, close-sessions or
    clock-skew. The last three act immediately, unless a --route is given.
    """
    from qrmi_workflows.emulator.client import Control
    from qrmi_workflows.emulator.faults import FaultRule

    rule = {"kind": kind} | {name: value for name, value in fields.items() if value is not None}
    FaultRule.parse(rule)  # a clear error even if no emulator is running
    number = Control(folder).ask("POST", "/faults", rule)["number"]
    click.echo("Done." if number is None else f"Added fault {number}.")


@fault.command("list")
@_folder_option
def list_faults(folder: Path) -> None:
    """Print the active rules and how often each has matched, as JSON."""
    from qrmi_workflows.emulator.client import Control

    click.echo(json.dumps(Control(folder).ask("GET", "/faults"), indent=2))


@fault.command("clear")
@_folder_option
@click.argument("number", type=int, required=False)
def clear_faults(folder: Path, number: int | None) -> None:
    """Remove the rule with the given NUMBER, or all rules."""
    from qrmi_workflows.emulator.client import Control

    Control(folder).ask("DELETE", "/faults" if number is None else f"/faults/{number}")
