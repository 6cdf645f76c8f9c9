"""The daemons of a sandbox: their commands and how to tell that each is ready."""

from __future__ import annotations

import http.client
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.sandbox.accounting import (
    database_argv,
    database_socket,
    find_database_programs,
)
from qrmi_workflows.sandbox.layout import Layout, Programs
from qrmi_workflows.sandbox.state import State
from qrmi_workflows.schedulers.command import run_command

__all__ = ["Daemon", "emulator_port", "list_daemons", "nodes_are_ready"]

_ENDPOINT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One daemon.

    Attributes:
        name: Its name in `status` and the stem of its log file.
        argv: Its command, which stays in the foreground.
        is_ready: Returns whether it accepts requests.
        blocks_next: Whether the next daemon must not start before this one is ready.
        variables: Variables of its environment that the others do not have.
    """

    name: str
    argv: tuple[str | Path, ...]
    is_ready: Callable[[], bool]
    blocks_next: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


def list_daemons(
    state: State, layout: Layout, programs: Programs, environ: Mapping[str, str]
) -> list[Daemon]:
    """Return all daemons of a sandbox in the order in which they start."""
    return [
        _emulator(state, layout),
        _munged(programs, layout, state.runtime),
        *_database(state, layout),
        _controller(state, layout, programs),
        *_nodes(state, layout, programs, environ),
    ]


def emulator_port(layout: Layout) -> int | None:
    """Return the emulator's TCP port as found in the endpoints of qrmi_config.json."""
    try:
        found = _ENDPOINT.search(layout.qrmi_config.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) if found else None


def nodes_are_ready(sinfo_output: str, nodes: int) -> bool:
    """Return whether every node responds, from `sinfo --noheader --Node --format=%N|%T`.

    A `*` marks a node that does not respond to slurmctld. A drained node counts as ready: the
    user drained it, and it stays drained.
    """
    states = dict(line.split("|") for line in sinfo_output.split())
    not_ready = ("unk", "down")
    ready = [
        name
        for name, state in states.items()
        if not state.endswith("*") and not state.startswith(not_ready)
    ]
    return len(ready) == nodes


def _emulator(state: State, layout: Layout) -> Daemon:
    argv: list[str | Path] = [sys.executable, "-m", "qrmi_workflows", "emulator"]
    argv += ["--dir", layout.emulator]
    if layout.emulator_settings.exists():
        argv += ["--config", layout.emulator_settings]
    for qpu in state.qpus:
        argv += ["--qpu", qpu]
    is_ready = lambda: _is_healthy(emulator_port(layout))  # noqa: E731
    return Daemon(name="emulator", argv=tuple(argv), is_ready=is_ready)


def _munged(programs: Programs, layout: Layout, runtime: Path) -> Daemon:
    argv = (
        programs.munged,
        "--foreground",
        "--force",
        f"--key-file={layout.munge_key}",
        f"--socket={runtime}/munge.socket",
        f"--pid-file={runtime}/munged.pid",
        f"--seed-file={runtime}/munged.seed",
    )
    is_ready = lambda: _accepts_connections(runtime / "munge.socket")  # noqa: E731
    return Daemon(name="munged", argv=argv, is_ready=is_ready, blocks_next=True)


def _database(state: State, layout: Layout) -> list[Daemon]:
    if state.database_port is None:
        return []
    programs, port = find_database_programs(), state.database_port
    mariadbd = Daemon(
        name="mariadbd",
        argv=tuple(database_argv(layout, programs, state.runtime)),
        is_ready=lambda: _accepts_connections(database_socket(state.runtime)),
        blocks_next=True,
    )
    slurmdbd = Daemon(
        name="slurmdbd",
        argv=(programs.slurmdbd, "-D"),
        is_ready=lambda: _accepts_connections(("127.0.0.1", port)),
        blocks_next=True,
        variables={"MYSQL_UNIX_PORT": str(database_socket(state.runtime))},
    )
    return [mariadbd, slurmdbd]


def _controller(state: State, layout: Layout, programs: Programs) -> Daemon:
    argv = (programs.slurmctld, "-D", "-f", layout.slurm_conf)
    address = (state.address or "127.0.0.1", state.controller_port)
    is_ready = lambda: _accepts_connections(address)  # noqa: E731
    return Daemon(name="slurmctld", argv=argv, is_ready=is_ready, blocks_next=True)


def _nodes(
    state: State, layout: Layout, programs: Programs, environ: Mapping[str, str]
) -> list[Daemon]:
    sinfo = [str(programs.clients["sinfo"]), "--noheader", "--Node", "--format=%N|%T"]

    def are_ready() -> bool:
        try:
            done = run_command(sinfo, timeout=10, environ=environ)
        except SchedulerError:
            return False
        return done.returncode == 0 and nodes_are_ready(done.stdout, state.nodes)

    names = [f"n{number}" for number in range(1, state.nodes + 1)]
    argv = (programs.slurmd, "-D", "-f", layout.slurm_conf, "-N")
    return [Daemon(name=f"slurmd-{name}", argv=(*argv, name), is_ready=are_ready) for name in names]


def _accepts_connections(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True


def _is_healthy(port: int | None) -> bool:
    if port is None:
        return False
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
