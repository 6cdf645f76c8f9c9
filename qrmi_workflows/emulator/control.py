"""The control endpoint: counters, and a QPU's availability; opened by a token of its own."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qrmi_workflows.emulator.device import AVAILABILITIES
from qrmi_workflows.emulator.dialects.base import JSONResponse, RefusalError, json_object
from qrmi_workflows.emulator.fleet import Fleet

__all__ = ["control_routes"]


def control_routes(fleet: Fleet) -> list[Route]:
    """Return the routes of the control endpoint."""

    async def counters(request: Request) -> Response:
        del request
        return JSONResponse(fleet.counters())

    async def set_qpu(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in fleet.devices:
            raise RefusalError(404, f"unknown QPU {name!r}; allowed: {', '.join(fleet.devices)}.")
        availability = (await json_object(request)).get("availability")
        if availability not in AVAILABILITIES:
            raise RefusalError(
                400, f"availability {availability!r}; allowed: {', '.join(AVAILABILITIES)}."
            )
        fleet.devices[name].set_availability(availability)
        return JSONResponse({"name": name, "availability": availability})

    handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/counters", counters),
        ("PATCH", "/qpus/{name}", set_qpu),
    ]
    return [
        Route(path, _guard(fleet, handler), methods=[method]) for method, path, handler in handlers
    ]


def _guard(
    fleet: Fleet, handler: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    expected = f"Bearer {fleet.credentials.control_token}".encode()

    async def guarded(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, expected):
            return JSONResponse({"error": "wrong or no control token"}, status_code=401)
        try:
            return await handler(request)
        except RefusalError as refusal:
            return JSONResponse({"error": refusal.message}, status_code=refusal.status)

    return guarded
