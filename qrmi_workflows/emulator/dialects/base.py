"""The base class of all dialects, and helpers to read requests and render errors."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from qrmi_workflows.emulator.device import Device
from qrmi_workflows.emulator.fleet import Fleet
from qrmi_workflows.emulator.simulators import Outcome
from qrmi_workflows.emulator.simulators.null import null_outcome
from qrmi_workflows.emulator.store import Task

__all__ = [
    "MAX_INTEGER",
    "Dialect",
    "Handler",
    "JSONResponse",
    "RefusalError",
    "fastapi_error",
    "parse_json",
    "read_json",
    "read_json_object",
    "read_moment",
    "required_field",
    "string_list",
]

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]
MAX_INTEGER = 2**63 - 1
"""The largest integer that the vendors' servers, and the emulator's store, can hold."""

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


class RefusalError(Exception):
    """A request that the vendor would reject.

    Args:
        status: The HTTP status.
        message: The reason, in the vendor's words where these are known.
        code: The vendor's own error code, if it has one.
    """

    def __init__(self, status: int, message: str, code: int | str = "") -> None:
        super().__init__(status, message, code)
        self.status = status
        self.message = message
        self.code = code


class JSONResponse(Response):
    """A response with a compact JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Serialise the content."""
        return json.dumps(content, separators=(",", ":")).encode()


class Dialect(ABC):
    """One vendor's API to the shared device model.

    A dialect serves all QPUs of its resource type under the prefix `/TYPE`, as an account with the
    vendor would see them.

    Attributes:
        type: QRMI's resource type, which is also the name of the dialect's entry point.
        simulators: The simulators its QPUs can use, as `load_simulator` takes them, or `null`; the
            first is the default.
        default_model: The machine that its QPUs imitate by default.
        names: The names its QPUs may have, if the vendor fixes them; empty: any name.
        server_settings: The fields of `ServerSettings` that it implements, except those below.
        billing_settings: Those that say what is billed.
        queue_settings: Those that say how the server counts its queue.
        offline_settings: Those that say what becomes of tasks when a QPU goes offline.
        overhead_seconds: What the vendor bills for each task in addition to its QPU seconds, by
            default.
        fleet: The devices, store, tokens and clock behind the API; set before any request.
    """

    type: ClassVar[str]
    simulators: ClassVar[tuple[str, ...]]
    default_model: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    server_settings: ClassVar[tuple[str, ...]] = ()
    billing_settings: ClassVar[tuple[str, ...]] = (
        "bills_cancelled_tasks",
        "bills_failed_tasks",
        "bills_own_errors",
    )
    queue_settings: ClassVar[tuple[str, ...]] = ()
    offline_settings: ClassVar[tuple[str, ...]] = ("offline_fails_running",)
    overhead_seconds: ClassVar[float] = 0.0
    fleet: Fleet

    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """Return the machines that its QPUs can imitate."""

    @abstractmethod
    def new_secrets(self) -> dict[str, str]:
        """Return new random credentials for one account."""

    @abstractmethod
    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the QRMI settings of a QPU, with keys without the `NAME_` prefix.

        Args:
            qpu: The QPU's name.
            url: The dialect's base URL, without a trailing slash.
            secrets: The account's credentials.
        """

    @abstractmethod
    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API as (method, path, handler), most frequent first."""

    @abstractmethod
    def render_refusal(self, refusal: RefusalError) -> Response:
        """Render a refusal as the vendor's error document."""

    def routes(self) -> list[Route]:
        """Return the API's routes, with every error rendered as the vendor's error document."""
        routes = [
            Route(path, self._with_vendor_errors(handler), methods=[method])
            for method, path, handler in self.handlers()
        ]
        unknown_route = self._with_vendor_errors(self._refuse_unknown_route)
        return [*routes, Route("/{path:path}", unknown_route, methods=_METHODS)]

    def device(self, name: str) -> Device:
        """Return this dialect's QPU of that name.

        Raises:
            RefusalError: It has no such QPU (404).
        """
        device = self.fleet.devices.get(name)
        if device is None or device.settings.type != self.type:
            raise RefusalError(404, f"Backend {name!r} was not found.")
        return device

    async def read_request(self, task: Task, request: str) -> str:
        """Return the simulator's input for a task that starts.

        Args:
            task: The task.
            request: The request that was stored with the task; by default this is the input.
        """
        del task
        return request

    def null_outcome(self, task: Task, request: str) -> Outcome:
        """Return a valid result without a simulation, for the simulator `null`.

        Args:
            task: The task.
            request: The simulator's input, as `read_request` returns it.
        """
        return null_outcome(task.program, request)

    def count_pubs(self, request: str) -> int:
        """Return how many PUBs a task has, by which its time on the device may grow.

        Args:
            request: The simulator's input, as `read_request` returns it.
        """
        del request
        return 1

    def stamp_result(self, task: Task, result: str) -> str:
        """Return a result with the times at which the device executed its task, if it has any."""
        del task
        return result

    async def write_outcome(self, task: Task, result: str | None, logs: str) -> None:
        """Deliver a task's outcome before its final state becomes visible.

        Args:
            task: The task.
            result: The result; `None` if the task has failed.
            logs: The logs.
        """
        del task, result, logs

    @property
    def devices(self) -> list[Device]:
        """The QPUs that this dialect serves."""
        return [item for item in self.fleet.devices.values() if item.settings.type == self.type]

    @property
    def qpu_names(self) -> frozenset[str]:
        """The names of the QPUs that this dialect serves."""
        return frozenset(device.name for device in self.devices)

    @property
    def secrets(self) -> Mapping[str, str]:
        """The account's credentials."""
        return self.fleet.credentials.secrets[self.type]

    def bearer(self, request: Request) -> str:
        """Return the request's bearer token, empty if it has none."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""

    def _with_vendor_errors(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RefusalError as refusal:
                return self.render_refusal(refusal)
            except ClientDisconnect:
                raise
            except Exception:
                _log.exception("%s %s", request.method, request.url.path)
                return self.render_refusal(
                    RefusalError(500, "Internal error of the emulator. See its log.")
                )

        return handle

    def require_cancel_route(self, request: Request, qpu: str) -> None:
        """Refuse a request to cancel a task of a QPU whose server has no route for it (404)."""
        if not self.fleet.devices[qpu].settings.server.cancel_route:
            raise _unknown_route(request)

    async def _refuse_unknown_route(self, request: Request) -> Response:
        raise _unknown_route(request)


def _unknown_route(request: Request) -> RefusalError:
    return RefusalError(404, f"{request.method} {request.url.path} is not part of this API.")


def fastapi_error(refusal: RefusalError) -> Response:
    """Render a refusal as FastAPI does, with status 422 for a malformed request."""
    if refusal.status in (400, 422):
        detail = [{"type": "value_error", "loc": ["body"], "msg": refusal.message}]
        return JSONResponse({"detail": detail}, status_code=422)
    return JSONResponse({"detail": refusal.message}, status_code=refusal.status)


async def read_json(request: Request) -> Any:
    """Return the request's JSON body.

    Raises:
        RefusalError: The body is not JSON (400).
    """
    return parse_json(await request.body())


def parse_json(body: bytes) -> Any:
    """Parse a request's JSON body.

    Raises:
        RefusalError: It is not JSON, or contains half of a surrogate pair, which is not text (400).
    """
    try:
        document = json.loads(body)
        if rb"\ud" in body.lower():
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"The request body is not JSON: {error}.") from error
    return document


async def read_json_object(request: Request) -> dict[str, Any]:
    """Return the request's JSON body, which must be an object.

    Raises:
        RefusalError: The body is not a JSON object (400).
    """
    document = await read_json(request)
    if not isinstance(document, dict):
        raise RefusalError(400, "The request body must be a JSON object.")
    return document


def required_field(document: Mapping[str, Any], key: str, type_: type) -> Any:
    """Return a required field of the given type.

    Raises:
        RefusalError: The field is missing, has another type, or is an integer of more than 64 bits
            (400).
    """
    value = document.get(key)
    if type_ is int and isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise RefusalError(400, f"The field {key!r} must be a number of at most 64 bits.")
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise RefusalError(400, f"The field {key!r} must be a {type_.__name__}, not {value!r:.80}.")
    return value


def string_list(value: object, key: str) -> list[str]:
    """Return a field's value, which must be a list of strings; an absent one is empty.

    Raises:
        RefusalError: It is something else (400).
    """
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise RefusalError(400, f"The field {key!r} must be a list of strings, not {value!r:.80}.")
    return items


def read_moment(text: str, name: str, status: int = 400) -> float:
    """Return a moment of a query, ISO 8601, in seconds since the epoch; UTC if it has no zone.

    Raises:
        RefusalError: The text is not a moment.
    """
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise RefusalError(
            status, f"The query parameter {name!r} must be a date in ISO 8601, not {text!r:.80}."
        ) from error
