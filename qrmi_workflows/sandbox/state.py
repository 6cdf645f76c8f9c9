"""The state that a sandbox keeps between commands: its nodes, QPUs, ports and processes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox.layout import Layout
from qrmi_workflows.sandbox.processes import ProcessRecord
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.locks import hold_lock

__all__ = [
    "State",
    "are_free",
    "find_free_ports",
    "lock_sandbox",
    "loopback_address",
    "read_state",
    "write_state",
]

_PORTS = range(20000, 32000)  # below Linux's range for outgoing connections


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A sandbox that has been started and not stopped.

    Attributes:
        nodes: The number of nodes.
        qpus: The requested QPUs as `NAME=TYPE[:MODEL]`; if empty, the emulator's defaults.
        runtime: The runtime directory, which has a short path for sockets.
        address: The loopback address that the host name resolves to, if any.
        controller_port: slurmctld's TCP port.
        node_ports: The TCP port of each node's slurmd.
        first_job_id: The id of the first job, if the controller has no saved state.
        multiple_slurmd: Whether this Slurm can run several nodes on one machine.
        database_port: slurmdbd's TCP port; `None` without accounting.
        site_scripts: Whether the site's own scripts acquire and release the jobs' QPUs.
        daemons: The process of each daemon that was started, by name.
    """

    nodes: int
    qpus: tuple[str, ...]
    runtime: Path
    address: str | None
    controller_port: int
    node_ports: tuple[int, ...]
    first_job_id: int = 1
    multiple_slurmd: bool = True
    database_port: int | None = None
    site_scripts: bool = False
    daemons: Mapping[str, ProcessRecord] = field(default_factory=dict)

    def with_daemon(self, name: str, record: ProcessRecord) -> State:
        """Return a copy of the state with this daemon added or replaced."""
        return replace(self, daemons={**self.daemons, name: record})


def read_state(layout: Layout) -> State | None:
    """Read the state; return `None` if the sandbox is down.

    Raises:
        SandboxError: The file is damaged or belongs to another user.
    """
    path = layout.state_file
    try:
        owner, text = path.stat().st_uid, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _access_error(path, error) from error
    if owner != os.getuid():
        raise SandboxError(
            f"the sandbox in {layout.directory} belongs to user {owner}; only that user may use "
            "it. Choose another directory with --dir."
        )
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SandboxError(
            f"{path}: not a sandbox state file: {error!r}. Remove it, or choose another "
            "directory with --dir."
        ) from error


def write_state(layout: Layout, state: State) -> None:
    """Write the state atomically."""
    text = json.dumps(asdict(state), indent=2, default=str) + "\n"
    write_atomically(layout.state_file, text)


@contextmanager
def lock_sandbox(layout: Layout) -> Iterator[None]:
    """Hold the lock that lets one command at a time start or stop the sandbox.

    Waits while another command holds it.

    Raises:
        SandboxError: The lock file cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(layout.lock_file))
        except OSError as error:
            raise _access_error(layout.lock_file, error) from error
        yield


def find_free_ports(count: int) -> tuple[int, ...]:
    """Find free TCP ports.

    Raises:
        SandboxError: Not enough ports are free.
    """
    found: list[int] = []
    for port in Random(os.urandom(8)).sample(_PORTS, len(_PORTS)):  # noqa: S311 - no secret
        if len(found) == count:
            return tuple(found)
        if are_free([port]):
            found.append(port)
    raise SandboxError(
        f"fewer than {count} free TCP ports from {_PORTS[0]} to {_PORTS[-1]}. Stop some of the "
        "programs that listen there."
    )


def are_free(ports: Iterable[int]) -> bool:
    """Return whether all of these TCP ports are free."""
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("0.0.0.0", port))  # noqa: S104 - closed again without listening
            except OSError:
                return False
    return True


def loopback_address(host: str) -> str | None:
    """Return the IPv4 address that a host name resolves to if it is a loopback address."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return None
    return address if ip_address(address).is_loopback else None


def _parse(document: dict[str, Any]) -> State:
    daemons = {name: ProcessRecord(**item) for name, item in document["daemons"].items()}
    return State(
        nodes=document["nodes"],
        qpus=tuple(document["qpus"]),
        runtime=Path(document["runtime"]),
        address=document["address"],
        controller_port=document["controller_port"],
        node_ports=tuple(document["node_ports"]),
        first_job_id=document.get("first_job_id", 1),
        multiple_slurmd=document.get("multiple_slurmd", True),
        database_port=document.get("database_port"),
        site_scripts=document.get("site_scripts", False),
        daemons=daemons,
    )


def _access_error(path: Path, error: OSError) -> SandboxError:
    return SandboxError(
        f"{path}: {error.strerror or error}. Choose a directory of your own with --dir."
    )
