"""The daemons of a sandbox: how each is started, and when it is ready."""

from __future__ import annotations

import http.client
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.sandbox.layout import Layout, Programs
from qrmi_workflows.sandbox.state import State
from qrmi_workflows.schedulers.base import run_command

__all__ = ["Daemon", "daemons_of", "emulator_port", "nodes_are_ready"]

_ENDPOINT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One daemon.

    Attributes:
        name: What `status` calls it, and its log.
        argv: Its command, which stays in the foreground.
        ready: Whether it does its work.
        first: Whether the next daemon needs it to be ready.
    """

    name: str
    argv: tuple[str | Path, ...]
    ready: Callable[[], bool]
    first: bool = False


def daemons_of(
    state: State, layout: Layout, programs: Programs, environ: Mapping[str, str]
) -> list[Daemon]:
    """Return all daemons of a sandbox, in the order of their start."""
    return [
        _emulator(state, layout),
        _munged(programs, layout, state.runtime),
        _controller(state, layout, programs),
        *_nodes(state, layout, programs, environ),
    ]


def emulator_port(layout: Layout) -> int | None:
    """Return the emulator's TCP port, which it writes into every endpoint of qrmi_config.json."""
    try:
        found = _ENDPOINT.search(layout.qrmi_config.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) if found else None


def nodes_are_ready(sinfo_output: str, nodes: int) -> bool:
    """Parse `sinfo --noheader --Node --format=%N|%T`: whether every node answers slurmctld.

    A `*` marks a node that does not answer; a drained one answers, and stays as the user left it.
    """
    states = dict(line.split("|") for line in sinfo_output.split())
    silent = ("unk", "down")
    answering = [
        name
        for name, state in states.items()
        if not state.endswith("*") and not state.startswith(silent)
    ]
    return len(answering) == nodes


def _emulator(state: State, layout: Layout) -> Daemon:
    argv: list[str | Path] = [sys.executable, "-m", "qrmi_workflows", "emulator"]
    argv += ["--dir", layout.emulator]
    if layout.emulator_settings.exists():
        argv += ["--config", layout.emulator_settings]
    for qpu in state.qpus:
        argv += ["--qpu", qpu]
    return Daemon(name="emulator", argv=tuple(argv), ready=lambda: _healthy(emulator_port(layout)))


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
    ready = lambda: _accepts(runtime / "munge.socket")  # noqa: E731
    return Daemon(name="munged", argv=argv, ready=ready, first=True)


def _controller(state: State, layout: Layout, programs: Programs) -> Daemon:
    argv = (programs.slurmctld, "-D", "-f", layout.slurm_conf)
    address = (state.address or "127.0.0.1", state.controller_port)
    return Daemon(name="slurmctld", argv=argv, ready=lambda: _accepts(address), first=True)


def _nodes(
    state: State, layout: Layout, programs: Programs, environ: Mapping[str, str]
) -> list[Daemon]:
    sinfo = [str(programs.clients["sinfo"]), "--noheader", "--Node", "--format=%N|%T"]

    def ready() -> bool:
        try:
            done = run_command(sinfo, timeout=10, environ=environ)
        except SchedulerError:
            return False
        return done.returncode == 0 and nodes_are_ready(done.stdout, state.nodes)

    names = [f"n{number}" for number in range(1, state.nodes + 1)]
    argv = (programs.slurmd, "-D", "-f", layout.slurm_conf, "-N")
    return [Daemon(name=f"slurmd-{name}", argv=(*argv, name), ready=ready) for name in names]


def _accepts(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True


def _healthy(port: int | None) -> bool:
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
