"""ASGI middleware around the whole API that injects faults and records requests."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.faults import FaultRule
from qrmi_workflows.emulator.fleet import Fleet

__all__ = ["FaultInjector", "Protocol", "Recorder"]

_TRANSPORT = "qrmi_workflows.transport"
_PIECES = 10
_RECORDED_BYTES = 65536
_SIGNATURE = re.compile(r"(X-Amz-(?:Signature|Credential)=)[^&\"]+")
_SECRET_ROUTES = ("/identity/token", "/oauth/token")


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, extended to let the application abort the connection.

    ASGI has no message for that, and uvicorn (read in 0.54) keeps the transport to itself.
    """

    def on_headers_complete(self) -> None:
        """Add the transport to the request's scope before the application runs."""
        self.scope["extensions"] = {_TRANSPORT: {"transport": self.transport}}
        super().on_headers_complete()


class FaultInjector:
    """Apply the fault rules to every request except those to /control and /healthz."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        self._app = app
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        rules: tuple[FaultRule, ...] = ()
        if self._fleet.faults and not scope["path"].startswith(("/control", "/healthz")):
            rules = self._fleet.faults.match(scope["method"], scope["path"])
        if not rules:
            await self._app(scope, receive, send)
            return
        for rule in rules:
            if rule.when == "before" and await self._apply(rule, scope, receive, send):
                return
        response = await self._buffer_response(scope, receive)
        for rule in rules:
            if rule.when == "after" and await self._apply(rule, scope, receive, send):
                return
        body_rules = [rule for rule in rules if rule.kind in ("malformed", "slow")]
        await _send_response(response, body_rules, send)

    async def _buffer_response(self, scope: Scope, receive: Receive) -> list[Message]:
        messages: list[Message] = []

        async def append(message: Message) -> None:
            messages.append(dict(message))

        await self._app(scope, receive, append)
        return messages

    async def _apply(self, rule: FaultRule, scope: Scope, receive: Receive, send: Send) -> bool:
        """Apply a rule; return `True` if that ends the request."""
        if rule.kind == "delay":
            await asyncio.sleep(rule.seconds)
        elif rule.kind == "hold":
            await self._fleet.faults.wait_for_removal(rule)
        elif rule.kind == "status":
            await _send_status(rule, send)
            return True
        elif rule.kind == "drop":
            await _drop(scope)
            return True
        elif rule.kind == "hang":
            await _hang(scope, receive)
            return True
        else:
            self._fleet.apply_immediate(rule)
        return False


async def _send_status(rule: FaultRule, send: Send) -> None:
    body = rule.body.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if rule.retry_after is not None:
        headers.append((b"retry-after", b"%d" % rule.retry_after))
    await send({"type": "http.response.start", "status": rule.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _drop(scope: Scope) -> None:
    scope["extensions"][_TRANSPORT]["transport"].abort()
    # abort() only schedules connection_lost. If the application returned before that, uvicorn
    # would log an error and try to send a 500.
    await asyncio.sleep(0.01)


async def _hang(scope: Scope, receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except asyncio.CancelledError:  # the emulator is shutting down
        await _drop(scope)


async def _send_response(response: list[Message], rules: list[FaultRule], send: Send) -> None:
    start, body = response[0], b"".join(item.get("body", b"") for item in response[1:])
    seconds = sum(rule.seconds for rule in rules if rule.kind == "slow")
    if any(rule.kind == "malformed" for rule in rules):
        body = body[: len(body) // 2]
    _set_content_length(start, len(body))
    await send(start)
    size = max(1, -(-len(body) // _PIECES)) if seconds else max(1, len(body))
    for offset in range(0, len(body), size):
        await asyncio.sleep(seconds / _PIECES)
        piece = body[offset : offset + size]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _set_content_length(start: MutableMapping[str, Any], length: int) -> None:
    others = [item for item in start["headers"] if item[0].lower() != b"content-length"]
    start["headers"] = [*others, (b"content-length", b"%d" % length)]


class Recorder:
    """Record every request as one JSON line: time, method, path, body, status, duration.

    Credentials are left out: headers, the bodies of token requests, and the signatures of
    presigned URLs.
    """

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request and record it."""
        started, body, status = time.monotonic(), bytearray(), 0

        async def receive_and_copy() -> Message:
            message = await receive()
            body.extend(message.get("body", b"")[: _RECORDED_BYTES - len(body)])
            return message

        async def send_and_copy(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive_and_copy, send_and_copy)
        finally:
            self._write(scope, bytes(body), status, time.monotonic() - started)

    def _write(self, scope: Scope, body: bytes, status: int, seconds: float) -> None:
        is_secret = scope["path"].endswith(_SECRET_ROUTES)
        document = {
            "time": Clock.iso(time.time()),
            "method": scope["method"],
            "path": scope["path"],
            "body": None if is_secret else _SIGNATURE.sub(r"\1...", body.decode(errors="replace")),
            "status": status,
            "seconds": round(seconds, 6),
        }
        self._file.write(json.dumps(document) + "\n")
