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

_Handler = Callable[[Request], Awaitable[Response]]


def control_routes(fleet: Fleet) -> list[Route]:
    """Return the routes of the control endpoint."""
    endpoint = _Endpoint(fleet)
    handlers: list[tuple[str, str, _Handler]] = [
        ("GET", "/counters", endpoint.count),
        ("PATCH", "/qpus/{name}", endpoint.set_qpu),
        ("POST", "/faults", endpoint.add_fault),
        ("GET", "/faults", endpoint.list_faults),
        ("DELETE", "/faults", endpoint.clear_faults),
        ("DELETE", "/faults/{number:int}", endpoint.remove_fault),
    ]
    return [
        Route(path, endpoint.guard(handler), methods=[method]) for method, path, handler in handlers
    ]


class _Endpoint:
    """What can be asked and told."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._expected = f"Bearer {fleet.credentials.control_token}".encode()

    def guard(self, handler: _Handler) -> _Handler:
        """Let only those in who have the token; render refusals."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not secrets.compare_digest(given, self._expected):
                return JSONResponse({"error": "wrong or no control token"}, status_code=401)
            try:
                return await handler(request)
            except RefusalError as refusal:
                return JSONResponse({"error": refusal.message}, status_code=refusal.status)

        return guarded

    async def count(self, request: Request) -> Response:
        del request
        return JSONResponse(self._fleet.counters())

    async def set_qpu(self, request: Request) -> Response:
        name, devices = request.path_params["name"], self._fleet.devices
        if name not in devices:
            raise RefusalError(404, f"unknown QPU {name!r}; allowed: {', '.join(devices)}.")
        availability = (await json_object(request)).get("availability")
        if availability not in AVAILABILITIES:
            allowed = ", ".join(AVAILABILITIES)
            raise RefusalError(400, f"availability {availability!r}; allowed: {allowed}.")
        devices[name].set_availability(availability)
        return JSONResponse({"name": name, "availability": availability})

    async def add_fault(self, request: Request) -> Response:
        try:
            rule = FaultRule.parse(await json_object(request))
        except EmulatorError as error:
            raise RefusalError(400, str(error)) from error
        if rule.kind in IMMEDIATE and rule.route == "*":
            self._fleet.apply_immediate(rule)
            return JSONResponse({"number": None})
        return JSONResponse({"number": self._fleet.faults.add(rule)})

    async def list_faults(self, request: Request) -> Response:
        del request
        return JSONResponse(self._fleet.faults.list())

    async def clear_faults(self, request: Request) -> Response:
        del request
        self._fleet.faults.clear()
        return JSONResponse(None)

    async def remove_fault(self, request: Request) -> Response:
        number = request.path_params["number"]
        if not self._fleet.faults.remove(number):
            raise RefusalError(404, f"there is no fault {number}.")
        return JSONResponse(None)
