"""The control endpoint: counters, faults, a QPU's availability; opened by a token of its own."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qrmi_workflows.emulator.device import AVAILABILITIES
from qrmi_workflows.emulator.dialects.base import JSONResponse, RefusalError, json_object
from qrmi_workflows.emulator.faults import IMMEDIATE, FaultRule
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.errors import EmulatorError

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

    async def add_fault(request: Request) -> Response:
        try:
            rule = FaultRule.parse(await json_object(request))
        except EmulatorError as error:
            raise RefusalError(400, str(error)) from error
        if rule.kind in IMMEDIATE and rule.route == "*":
            fleet.apply_immediate(rule)
            return JSONResponse({"number": None})
        return JSONResponse({"number": fleet.faults.add(rule)})

    async def list_faults(request: Request) -> Response:
        del request
        return JSONResponse(fleet.faults.list())

    async def clear_faults(request: Request) -> Response:
        del request
        fleet.faults.clear()
        return JSONResponse(None)

    async def remove_fault(request: Request) -> Response:
        number = request.path_params["number"]
        if not fleet.faults.remove(number):
            raise RefusalError(404, f"there is no fault {number}.")
        return JSONResponse(None)

    handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/counters", counters),
        ("POST", "/faults", add_fault),
        ("GET", "/faults", list_faults),
        ("DELETE", "/faults", clear_faults),
        ("DELETE", "/faults/{number:int}", remove_fault),
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
