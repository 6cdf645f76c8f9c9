"""`qpu emulator`: the emulator alone, without Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["emulator"]

_FOLDER = Path("qpu-emulator")


class _ServeByDefault(click.Group):
    """`qpu emulator --port 8000` is `qpu emulator serve --port 8000`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `serve` in front where no command is named."""
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
    """Emulated QPUs behind their vendors' HTTP APIs.

    Without a command it serves in the foreground.
    """


@emulator.command()
@_folder_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to bind.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port; by default the one of the last run if it is free, else any.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file with [qpus.NAME] tables.",
)
@click.option("--qpu", "qpus", multiple=True, metavar="NAME=TYPE[:MODEL]", help="A QPU to emulate.")
@click.option("--seed", type=int, help="What random numbers derive from.")
@click.option("--record", is_flag=True, help="Write every request to requests.jsonl.")
@click.option("--json", "as_json", is_flag=True, help="Announce readiness as one JSON line.")
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
    """Serve until Ctrl-C or SIGTERM.

    TYPE is alice-bob-felis, ibm-quantum-compute-service, ibm-quantum-system, iqm-server,
    pasqal-cloud or pasqal-local; MODEL a fake backend of qiskit-ibm-runtime (fez), a machine of
    IQM's (garnet) or a device of Pulser (AnalogDevice). Without --qpu and --config there is one
    of IBM's and one of Pasqal's.
    """
    from qrmi_workflows.vendors import needs_extra

    with needs_extra("emulator"):
        from qrmi_workflows.emulator.folder import Folder
        from qrmi_workflows.emulator.server import Readiness
        from qrmi_workflows.emulator.server import serve as run_server
        from qrmi_workflows.emulator.settings import read_settings

    def announce(ready: Readiness) -> None:
        if as_json:
            text = {"url": ready.url, "config": str(ready.config), "qpus": list(ready.qpus)}
            click.echo(json.dumps(text))
        else:
            click.echo(f"Serving {', '.join(ready.qpus)} at {ready.url}; config: {ready.config}")

    settings = read_settings(config, qpus, seed, record)
    run_server(settings, Folder(folder.resolve()), host, port, announce)


@emulator.command()
@_folder_option
def counters(folder: Path) -> None:
    """Print how many tasks and sessions there were and are, as JSON."""
    from qrmi_workflows.emulator.client import Control

    click.echo(json.dumps(Control(folder).counters(), indent=2))


@emulator.command()
@_folder_option
@click.argument("name")
@click.argument("availability", type=click.Choice(["online", "paused", "offline", "reserved"]))
def set(folder: Path, name: str, availability: str) -> None:  # noqa: A001 - the command's name
    """Bring a QPU online, pause it, take it offline, or let another site reserve it."""
    from qrmi_workflows.emulator.client import Control

    Control(folder).ask("PATCH", f"/qpus/{name}", {"availability": availability})


@emulator.group()
def fault() -> None:
    """Let the emulator behave as a vendor does on a bad day."""


@fault.command("add")
@_folder_option
@click.argument("kind")
@click.option("--route", help="Method and path with wildcards, such as 'POST */jobs'.")
@click.option("--count", type=int, help="How many requests it acts on; without it: all.")
@click.option("--after", type=int, help="How many matching requests it lets pass first.")
@click.option("--when", help="`before` the request is carried out, or `after` it was.")
@click.option("--seconds", type=float, help="For delay, slow and clock-skew.")
@click.option("--status", type=int, help="The HTTP status, for status.")
@click.option("--body", help="The body, for status.")
@click.option("--retry-after", type=int, help="The header Retry-After in seconds, for status.")
def add_fault(folder: Path, kind: str, **fields: object) -> None:
    """Add a rule.

    KIND is status, delay, drop, hang, malformed, slow, expire-tokens, close-sessions or
    clock-skew. Without a --route the last three happen at once.
    """
    from qrmi_workflows.emulator.client import Control
    from qrmi_workflows.emulator.faults import FaultRule

    given = {name: value for name, value in fields.items() if value is not None}
    FaultRule.parse({"kind": kind, **given})
    number = Control(folder).ask("POST", "/faults", {"kind": kind, **given})["number"]
    click.echo("Done." if number is None else f"Fault {number} is in force.")


@fault.command("list")
@_folder_option
def list_faults(folder: Path) -> None:
    """Print the rules in force and how many requests each has matched, as JSON."""
    from qrmi_workflows.emulator.client import Control

    click.echo(json.dumps(Control(folder).ask("GET", "/faults"), indent=2))


@fault.command("clear")
@_folder_option
@click.argument("number", type=int, required=False)
def clear_faults(folder: Path, number: int | None) -> None:
    """End one rule, or all."""
    from qrmi_workflows.emulator.client import Control

    Control(folder).ask("DELETE", "/faults" if number is None else f"/faults/{number}")
