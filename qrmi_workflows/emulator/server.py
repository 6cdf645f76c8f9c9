"""The HTTP server: every dialect below its own prefix, the control endpoint, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from qrmi_workflows.emulator.control import control_routes
from qrmi_workflows.emulator.dialects.base import JSONResponse
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.emulator.folder import Folder
from qrmi_workflows.emulator.injection import FaultInjector, Protocol, Recorder
from qrmi_workflows.emulator.settings import EmulatorSettings
from qrmi_workflows.errors import EmulatorError

__all__ = ["Readiness", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What a started emulator tells.

    Attributes:
        url: Where it serves.
        config: The `qrmi_config.json` that it wrote.
        qpus: The names of its QPUs.
    """

    url: str
    config: Path
    qpus: tuple[str, ...]


class _Server(uvicorn.Server):
    """uvicorn, but a signal ends it cleanly instead of being raised again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
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
        settings: What to emulate.
        folder: Where its state lives.
        host: The address to bind.
        port: The port; `None`: the one served last from this folder if it is free, else any.
        announce: Called once when requests are answered.

    Raises:
        EmulatorError: The folder or the port is in use.
    """
    os.umask(0o077)  # what it writes is for its owner alone
    folder.claim()
    credentials = folder.read_credentials()
    listener = _listen(host, port, credentials.port)
    actual = listener.getsockname()[1]
    credentials = credentials.complete(settings, actual)
    url = f"http://{f'[{host}]' if ':' in host else host}:{actual}"
    folder.write(credentials, settings, url)
    ready = Readiness(url=url, config=folder.config, qpus=tuple(settings.qpus))

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(Fleet(settings, folder, credentials), listener, announce, ready))


async def _run(
    fleet: Fleet,
    listener: socket.socket,
    announce: Callable[[Readiness], None],
    ready: Readiness,
) -> None:
    server = _Server(_configuration(build_app(fleet)))
    fleet.start()
    announcing = asyncio.ensure_future(_announce(server, announce, ready))
    try:
        await server.serve(sockets=[listener])
    finally:
        announcing.cancel()
        await fleet.stop()


def build_app(fleet: Fleet) -> ASGIApp:
    """Return the whole API: the dialects in use, health and control, faults and recording."""
    mounts: list[BaseRoute] = [
        Mount(f"/{name}", routes=dialect.routes()) for name, dialect in fleet.dialects.items()
    ]

    async def health(request: Request) -> Response:
        del request
        return JSONResponse({"status": "ok", "qpus": list(fleet.devices)})

    others: list[BaseRoute] = [
        Route("/healthz", health),
        Mount("/control", routes=control_routes(fleet)),
    ]
    injector = FaultInjector(Starlette(routes=[*mounts, *others]), fleet)
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


async def _announce(
    server: uvicorn.Server, announce: Callable[[Readiness], None], ready: Readiness
) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    announce(ready)


def _listen(host: str, port: int | None, last: int) -> socket.socket:
    if port is None and last:
        with contextlib.suppress(OSError):
            return _bind(host, last)
    try:
        return _bind(host, port or 0)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EmulatorError(
                f"--port {port}: another program listens on {host}:{port}; allowed is a free "
                "port. Leave --port out to get one."
            ) from error
        raise EmulatorError(
            f"cannot listen on {host}:{port or 0}: {error.strerror or error}. "
            "Name an address of this machine and a port from 1024 to 65535."
        ) from error


def _bind(host: str, port: int) -> socket.socket:
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
