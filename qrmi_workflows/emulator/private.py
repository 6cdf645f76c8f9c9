"""A private emulator: one QPU, for the process that has started it, which it does not outlive.

It leaves nothing on disk. It ends when its parent says so, or has died; a signal does not end it,
because a scheduler signals all processes of a job, and the parent has yet to release its lease.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.emulator.accounts import complete_accounts, qrmi_config
from qrmi_workflows.emulator.dialects import load_dialect
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.emulator.folder import Credentials, Folder
from qrmi_workflows.emulator.server import bind, run_server
from qrmi_workflows.emulator.settings import EmulatorSettings, QPUSettings

__all__ = ["serve_private"]

_LOOPBACK = "127.0.0.1"
_PARENT_SECONDS = 0.5
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _NoFolder(Folder):
    """Stands for the state folder: SQLite keeps a database of this name in memory."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.database = Path(":memory:")


def serve_private(
    qpu: QPUSettings, parent: int, announce: Callable[[Mapping[str, str]], None]
) -> None:
    """Serve one QPU on loopback until the parent has died, or writes to standard input.

    Args:
        qpu: The QPU.
        parent: The parent's process id.
        announce: Called once, when the server accepts requests, with QRMI's settings for the QPU.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    settings = EmulatorSettings(qpus={qpu.name: qpu})
    dialects = {qpu.type: load_dialect(qpu.type)}
    listener = bind(_LOOPBACK, 0)
    accounts = complete_accounts({}, dialects)
    url = f"http://{_LOOPBACK}:{listener.getsockname()[1]}"
    (defined,) = qrmi_config(settings, url, accounts, dialects)["resources"]
    fleet = Fleet(settings, _NoFolder(), Credentials(secrets=accounts), dialects)
    run_server(
        fleet,
        dialects,
        listener,
        lambda: announce(defined["environment"]),
        end=lambda: _await_end(parent),
    )


async def _await_end(parent: int) -> None:
    # The end of the pipe alone does not tell: a fork of the parent may keep it open.
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    while os.getppid() == parent and not ended.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _PARENT_SECONDS)
    asyncio.get_running_loop().remove_reader(0)
