"""What every dialect has, and how it refuses a request in its vendor's own form."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from qrmi_workflows.emulator.device import Device
    from qrmi_workflows.emulator.fleet import Fleet
    from qrmi_workflows.emulator.store import Task

__all__ = [
    "Dialect",
    "Handler",
    "JSONResponse",
    "RefusalError",
    "json_object",
    "read_json",
    "wanted",
]

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


class RefusalError(Exception):
    """A request that the vendor would refuse.

    Args:
        status: The HTTP status.
        message: What is wrong with it.
        code: The vendor's own code, where it has one.
    """

    def __init__(self, status: int, message: str, code: int | str = "") -> None:
        super().__init__(status, message, code)
        self.status = status
        self.message = message
        self.code = code


class JSONResponse(Response):
    """A JSON body, rendered compactly."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, separators=(",", ":")).encode()


class Dialect(ABC):
    """One vendor's API over the shared device model.

    A dialect serves all QPUs of its resource type below one prefix, as one account of the vendor
    would see them.

    Attributes:
        type: QRMI's resource type.
        simulators: What may compute its results; the first is the default.
        default_model: The machine that its QPUs resemble by default.
        names: The only names that its QPUs may have; empty: any.
    """

    type: ClassVar[str]
    simulators: ClassVar[tuple[str, ...]]
    default_model: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    fleet: Fleet

    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """Return the machines that its QPUs may resemble."""

    @abstractmethod
    def new_secrets(self) -> dict[str, str]:
        """Return random credentials of one account."""

    @abstractmethod
    def environment(self, qpu: str, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the settings with which QRMI reaches a QPU, keys without the `NAME_` prefix.

        Args:
            qpu: The QPU's name.
            url: Where this dialect is served, without a trailing slash.
            secrets: The account's credentials.
        """

    @abstractmethod
    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Return the API as (method, path, handler), the most frequent ones first."""

    @abstractmethod
    def refuse(self, refusal: RefusalError) -> Response:
        """Render a refusal as the vendor does."""

    def routes(self) -> list[Route]:
        """Return the API's routes; every error leaves in the vendor's form."""
        routes = [
            Route(path, self._guard(handler), methods=[method])
            for method, path, handler in self.handlers()
        ]
        return [*routes, Route("/{path:path}", self._guard(self._unknown), methods=_METHODS)]

    def device(self, name: str) -> Device:
        """Return the QPU of that name.

        Raises:
            RefusalError: This dialect has none (404).
        """
        device = self.fleet.devices.get(name)
        if device is None or device.settings.type != self.type:
            raise RefusalError(404, f"Backend {name!r} was not found.")
        return device

    async def read_request(self, task: Task, request: str) -> str:
        """Return the input of a task that starts, given what was remembered of it."""
        del task
        return request

    async def write_outcome(self, task: Task, result: str | None, logs: str) -> None:
        """Deliver what a task gave before it is said to have ended; `None`: it failed."""
        del task, result, logs

    @property
    def devices(self) -> list[Device]:
        """The QPUs that this dialect serves."""
        return [item for item in self.fleet.devices.values() if item.settings.type == self.type]

    @property
    def served(self) -> frozenset[str]:
        """The names of the QPUs that this dialect serves."""
        return frozenset(device.name for device in self.devices)

    @property
    def secrets(self) -> Mapping[str, str]:
        """The account's credentials."""
        return self.fleet.credentials.secrets[self.type]

    def bearer(self, request: Request) -> str:
        """Return the request's Bearer token, empty when it has none."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""

    def _guard(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except RefusalError as refusal:
                return self.refuse(refusal)
            except ClientDisconnect:
                raise
            except Exception:
                _log.exception("%s %s", request.method, request.url.path)
                return self.refuse(
                    RefusalError(500, "Internal error of the emulator; see its log.")
                )

        return guarded

    async def _unknown(self, request: Request) -> Response:
        raise RefusalError(404, f"{request.method} {request.url.path} is not part of this API.")


async def read_json(request: Request) -> Any:
    """Return the request's JSON body.

    Raises:
        RefusalError: It is not JSON (400).
    """
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"The request body is not JSON: {error}.") from error


async def json_object(request: Request) -> dict[str, Any]:
    """Return the request's JSON body, which must be an object.

    Raises:
        RefusalError: It is not (400).
    """
    document = await read_json(request)
    if not isinstance(document, dict):
        raise RefusalError(400, "The request body must be a JSON object.")
    return document


def wanted(document: Mapping[str, Any], key: str, type_: type) -> Any:
    """Return a field that must be there and of that type.

    Raises:
        RefusalError: It is not (400).
    """
    value = document.get(key)
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise RefusalError(400, f"The field {key!r} must be a {type_.__name__}, not {value!r:.80}.")
    return value
