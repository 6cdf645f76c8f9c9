"""The control endpoint: counters, billing, faults and availability, behind a token of its own."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qrmi_workflows.emulator.device import AVAILABILITIES
from qrmi_workflows.emulator.dialects.base import JSONResponse, RefusalError, read_json_object
from qrmi_workflows.emulator.faults import IMMEDIATE, FaultRule
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.errors import EmulatorError

__all__ = ["control_routes"]

_Handler = Callable[[Request], Awaitable[Response]]


def control_routes(fleet: Fleet) -> list[Route]:
    """Return the routes of the control endpoint."""
    endpoint = _Endpoint(fleet)
    handlers: list[tuple[str, str, _Handler]] = [
        ("GET", "/counters", endpoint.get_counters),
        ("GET", "/billing", endpoint.get_billing),
        ("PATCH", "/qpus/{name}", endpoint.set_qpu),
        ("POST", "/faults", endpoint.add_fault),
        ("GET", "/faults", endpoint.list_faults),
        ("DELETE", "/faults", endpoint.clear_faults),
        ("DELETE", "/faults/{number:int}", endpoint.remove_fault),
    ]
    return [
        Route(path, endpoint.require_token(handler), methods=[method])
        for method, path, handler in handlers
    ]


class _Endpoint:
    """The request handlers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._expected = f"Bearer {fleet.credentials.control_token}".encode()

    def require_token(self, handler: _Handler) -> _Handler:
        """Wrap a handler: check the control token first, and render refusals as JSON."""

        async def checked_handler(request: Request) -> Response:
            presented = request.headers.get("authorization", "").encode()
            if not secrets.compare_digest(presented, self._expected):
                return JSONResponse({"error": "missing or wrong control token"}, status_code=401)
            try:
                return await handler(request)
            except RefusalError as refusal:
                return JSONResponse({"error": refusal.message}, status_code=refusal.status)

        return checked_handler

    async def get_counters(self, request: Request) -> Response:
        del request
        return JSONResponse(self._fleet.counters())

    async def get_billing(self, request: Request) -> Response:
        del request
        return JSONResponse(self._fleet.billing())

    async def set_qpu(self, request: Request) -> Response:
        name, devices = request.path_params["name"], self._fleet.devices
        if name not in devices:
            allowed = ", ".join(devices)
            raise RefusalError(404, f"QPU {name!r} is unknown; allowed: {allowed}. Correct it.")
        availability = (await read_json_object(request)).get("availability")
        if availability not in AVAILABILITIES:
            allowed = ", ".join(AVAILABILITIES)
            raise RefusalError(
                400, f"availability {availability!r} is unknown; allowed: {allowed}. Correct it."
            )
        devices[name].set_availability(availability)
        return JSONResponse({"name": name, "availability": availability})

    async def add_fault(self, request: Request) -> Response:
        try:
            rule = FaultRule.parse(await read_json_object(request))
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
            raise RefusalError(
                404, f"fault {number} does not exist. List the faults for their numbers."
            )
        return JSONResponse(None)
