"""ASGI middleware around the whole API: faults are injected here, requests recorded."""

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
    """uvicorn's protocol, which also lets a fault close the connection."""

    def on_headers_complete(self) -> None:
        """Give the connection to the application."""
        self.scope["extensions"] = {_TRANSPORT: {"transport": self.transport}}
        super().on_headers_complete()


class FaultInjector:
    """Applies the fault rules to every request but those to the control endpoint and /healthz."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        self._app = app
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        rules: tuple[FaultRule, ...] = ()
        if self._fleet.faults and not scope["path"].startswith(("/control", "/healthz")):
            rules = self._fleet.faults.match(scope["method"], scope["path"])
        if not rules:
            await self._app(scope, receive, send)
            return
        for rule in rules:
            if rule.when == "before" and await self._act(rule, scope, receive, send):
                return
        answer = await self._carry_out(scope, receive)
        for rule in rules:
            if rule.when == "after" and await self._act(rule, scope, receive, send):
                return
        await _deliver(answer, [rule for rule in rules if rule.kind in ("malformed", "slow")], send)

    async def _carry_out(self, scope: Scope, receive: Receive) -> list[Message]:
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(dict(message))

        await self._app(scope, receive, keep)
        return answer

    async def _act(self, rule: FaultRule, scope: Scope, receive: Receive, send: Send) -> bool:
        """Apply a rule; `True` when the request is done with."""
        if rule.kind == "delay":
            await asyncio.sleep(rule.seconds)
        elif rule.kind == "status":
            await _answer_status(rule, send)
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


async def _answer_status(rule: FaultRule, send: Send) -> None:
    body = rule.body.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if rule.retry_after is not None:
        headers.append((b"retry-after", b"%d" % rule.retry_after))
    await send({"type": "http.response.start", "status": rule.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _drop(scope: Scope) -> None:
    scope["extensions"][_TRANSPORT]["transport"].abort()
    await asyncio.sleep(0.01)  # the loop notes that the connection is gone


async def _hang(scope: Scope, receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except asyncio.CancelledError:  # the emulator ends
        await _drop(scope)


async def _deliver(answer: list[Message], rules: list[FaultRule], send: Send) -> None:
    start, body = answer[0], b"".join(item.get("body", b"") for item in answer[1:])
    seconds = sum(rule.seconds for rule in rules if rule.kind == "slow")
    if any(rule.kind == "malformed" for rule in rules):
        body = body[: len(body) // 2]
    _set_length(start, len(body))
    await send(start)
    size = max(1, -(-len(body) // _PIECES)) if seconds else max(1, len(body))
    for offset in range(0, len(body), size):
        await asyncio.sleep(seconds / _PIECES)
        piece = body[offset : offset + size]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _set_length(start: MutableMapping[str, Any], length: int) -> None:
    kept = [item for item in start["headers"] if item[0].lower() != b"content-length"]
    start["headers"] = [*kept, (b"content-length", b"%d" % length)]


class Recorder:
    """Writes every request as one JSON line: time, method, path, body, status, duration.

    Neither headers nor the bodies of requests for a token are written, nor the signatures of
    presigned URLs: they are credentials.
    """

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and record it."""
        begun, body, status = time.monotonic(), bytearray(), 0

        async def listen() -> Message:
            message = await receive()
            body.extend(message.get("body", b"")[: _RECORDED_BYTES - len(body)])
            return message

        async def tell(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, listen, tell)
        finally:
            self._write(scope, bytes(body), status, time.monotonic() - begun)

    def _write(self, scope: Scope, body: bytes, status: int, seconds: float) -> None:
        secret = scope["path"].endswith(_SECRET_ROUTES)
        document = {
            "time": Clock.iso(time.time()),
            "method": scope["method"],
            "path": scope["path"],
            "body": None if secret else _SIGNATURE.sub(r"\1...", body.decode(errors="replace")),
            "status": status,
            "seconds": round(seconds, 6),
        }
        self._file.write(json.dumps(document) + "\n")
