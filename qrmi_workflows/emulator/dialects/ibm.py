"""What IBM's two APIs share: IAM, and the published configurations of its backends."""

from __future__ import annotations

import functools
import json
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.dialects.base import Dialect, JSONResponse
from qrmi_workflows.emulator.tokens import LIFETIME_SECONDS
from qrmi_workflows.errors import EmulatorError

__all__ = ["backend_document", "exchange_key", "fake_backends", "new_api_key"]

_GRANT = "urn:ibm:params:oauth:grant-type:apikey"


def new_api_key() -> str:
    """Return a random IBM Cloud API key."""
    return secrets.token_urlsafe(33)


async def exchange_key(request: Request, dialect: Dialect) -> Response:
    """Answer IAM's `POST /identity/token`: an API key for an access token."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    grant, key = form.get("grant_type", [""])[0], form.get("apikey", [""])[0]
    if grant != _GRANT:
        return _iam_error("BXNIM0137E", f"Property missing or empty: grant_type = {_GRANT}")
    if not secrets.compare_digest(key.encode(), dialect.secrets["apikey"].encode()):
        return _iam_error("BXNIM0415E", "Provided API key could not be found.")
    now = int(dialect.fleet.clock.now())
    return JSONResponse(
        {
            "access_token": dialect.fleet.tokens.issue(dialect.type),
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": LIFETIME_SECONDS,
            "expiration": now + LIFETIME_SECONDS,
            "scope": "ibm openid",
        }
    )


def _iam_error(code: str, message: str) -> Response:
    return JSONResponse({"errorCode": code, "errorMessage": message}, status_code=400)


@functools.cache
def fake_backends() -> tuple[str, ...]:
    """Return the names of the backends that qiskit-ibm-runtime publishes snapshots of.

    Raises:
        EmulatorError: qiskit-ibm-runtime is not installed.
    """
    found = {path.parent.name for path in _folder().glob("*/conf_*.json")}
    return tuple(sorted(name for name in found if (_path(name, "props")).exists()))


@functools.cache
def backend_document(model: str, kind: str) -> dict[str, Any]:
    """Return a backend's configuration (`conf`) or properties (`props`)."""
    document: dict[str, Any] = json.loads(_path(model, kind).read_text(encoding="utf-8"))
    return document


def _path(model: str, kind: str) -> Path:
    return _folder() / model / f"{kind}_{model}.json"


@functools.cache
def _folder() -> Path:
    # The package is only located here, not imported: importing it takes seconds.
    spec = find_spec("qiskit_ibm_runtime")
    if spec is None or not spec.submodule_search_locations:
        raise EmulatorError(
            "IBM's QPUs need the package qiskit-ibm-runtime, which is not installed. "
            "Run `pip install 'qrmi-workflows[emulator]'`."
        )
    return Path(spec.submodule_search_locations[0]) / "fake_provider" / "backends"
