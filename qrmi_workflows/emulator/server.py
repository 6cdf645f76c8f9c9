"""The HTTP server: each dialect under its own prefix, and the control endpoint, on one event loop.

Only the simulations run elsewhere, in worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from qrmi_workflows.emulator.accounts import complete_accounts, qrmi_config
from qrmi_workflows.emulator.control import control_routes
from qrmi_workflows.emulator.dialects import Dialect, load_dialect
from qrmi_workflows.emulator.dialects.base import JSONResponse
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.emulator.folder import Folder
from qrmi_workflows.emulator.injection import FaultInjector, Protocol, Recorder
from qrmi_workflows.emulator.settings import EmulatorSettings
from qrmi_workflows.errors import EmulatorError

__all__ = ["Readiness", "bind", "run_server", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The announcement that an emulator is ready.

    Attributes:
        url: Its base URL.
        config: The path of the `qrmi_config.json` that it wrote.
        qpus: The names of its QPUs.
    """

    url: str
    config: Path
    qpus: tuple[str, ...]


class _Server(uvicorn.Server):
    """A uvicorn server that shuts down cleanly on a signal.

    uvicorn (read in 0.54) raises a captured signal again once its server has shut down. That would
    end the process before it has stopped its workers.

    Args:
        configuration: Its configuration.
        heeds_signals: Whether signals end it.
    """

    def __init__(self, configuration: uvicorn.Config, *, heeds_signals: bool) -> None:
        super().__init__(configuration)
        self._heeds_signals = heeds_signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM) if self._heeds_signals else ():
            loop.add_signal_handler(number, functools.partial(self.handle_exit, number, None))
        yield


def serve(
    settings: EmulatorSettings,
    folder: Folder,
    host: str,
    port: int | None,
    announce: Callable[[Readiness], None],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: The QPUs and their behaviour.
        folder: The state folder.
        host: The address to bind.
        port: The port; `None`: the folder's previous port if that is free, else any free port.
        announce: Called once, when the server accepts requests.

    Raises:
        EmulatorError: The folder or the port is in use.
    """
    os.umask(0o077)  # for the files that SQLite and the recorder create
    folder.claim()
    dialects = {name: load_dialect(name) for name in settings.types}
    credentials = folder.read_credentials()
    listener = _listen(host, port, credentials.port)
    bound_port = listener.getsockname()[1]
    accounts = complete_accounts(credentials.secrets, dialects)
    credentials = replace(credentials, port=bound_port, secrets=accounts)
    url = f"http://{f'[{host}]' if ':' in host else host}:{bound_port}"
    folder.write(credentials, qrmi_config(settings, url, accounts, dialects), url)
    ready = Readiness(url=url, config=folder.config, qpus=tuple(settings.qpus))
    fleet = Fleet(settings, folder, credentials, dialects)
    run_server(fleet, dialects, listener, functools.partial(announce, ready))


def run_server(
    fleet: Fleet,
    dialects: Mapping[str, Dialect],
    listener: socket.socket,
    announce: Callable[[], None],
    end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; or until `end` returns, and then signals have no effect.

    Args:
        fleet: What the dialects serve.
        dialects: The dialect of each resource type in use.
        listener: The bound socket.
        announce: Called once, when the server accepts requests.
        end: Returns when the server has to end, if signals do not say so.
    """
    for dialect in dialects.values():
        dialect.fleet = fleet
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(fleet, build_app(fleet, dialects), listener, announce, end))


async def _run(
    fleet: Fleet,
    app: ASGIApp,
    listener: socket.socket,
    announce: Callable[[], None],
    end: Callable[[], Awaitable[None]] | None,
) -> None:
    server = _Server(_configuration(app), heeds_signals=end is None)
    fleet.start()
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    announcing = asyncio.ensure_future(_announce(server, announce))
    ending = asyncio.ensure_future(end()) if end is not None else serving
    try:
        # Clients that have not closed their connections do not delay a server that has to end.
        await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
    finally:
        announcing.cancel()
        await fleet.stop()


def build_app(fleet: Fleet, dialects: Mapping[str, Dialect]) -> ASGIApp:
    """Return the ASGI application: dialects, health and control, inside faults and recording."""
    vendor_routes: list[BaseRoute] = [
        Mount(f"/{name}", routes=dialect.routes()) for name, dialect in dialects.items()
    ]

    async def health(request: Request) -> Response:
        del request
        return JSONResponse({"status": "ok", "qpus": list(fleet.devices)})

    own_routes: list[BaseRoute] = [
        Route("/healthz", health),
        Mount("/control", routes=control_routes(fleet)),
    ]
    injector = FaultInjector(Starlette(routes=[*vendor_routes, *own_routes]), fleet)
    return Recorder(injector, fleet.folder.requests) if fleet.settings.record else injector


def _configuration(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=300,
        timeout_graceful_shutdown=1,
        server_header=False,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _announce(server: uvicorn.Server, announce: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    announce()


def _listen(host: str, port: int | None, previous_port: int) -> socket.socket:
    if port is None and previous_port:
        with contextlib.suppress(OSError):  # taken in the meantime: use any free port
            return bind(host, previous_port)
    try:
        return bind(host, port or 0)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EmulatorError(
                f"--port {port}: another program is listening on {host}:{port}. "
                "Name a free port, or omit --port to have one chosen."
            ) from error
        raise EmulatorError(
            f"cannot listen on {host}:{port or 0}: {error.strerror or error}. "
            "Use an address of this machine and a port from 1024 to 65535."
        ) from error


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 stands for any free port.

    Raises:
        OSError: The address or the port cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
