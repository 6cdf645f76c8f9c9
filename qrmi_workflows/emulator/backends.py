"""The configurations and properties of IBM's backends, from qiskit-ibm-runtime's snapshots."""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import EmulatorError

__all__ = ["backend_document", "fake_backends"]


@functools.cache
def fake_backends() -> tuple[str, ...]:
    """Return the names of the backends that have a snapshot, sorted.

    Raises:
        EmulatorError: qiskit-ibm-runtime is not installed.
    """
    names = {path.parent.name for path in _folder().glob("*/conf_*.json")}
    return tuple(sorted(name for name in names if _path(name, "props").exists()))


@functools.cache
def backend_document(model: str, kind: str) -> dict[str, Any]:
    """Return a backend's configuration (kind `conf`) or properties (kind `props`)."""
    document: dict[str, Any] = json.loads(_path(model, kind).read_text(encoding="utf-8"))
    return document


def _path(model: str, kind: str) -> Path:
    return _folder() / model / f"{kind}_{model}.json"


@functools.cache
def _folder() -> Path:
    # Locate the package without importing it, which takes seconds.
    spec = find_spec("qiskit_ibm_runtime")
    if spec is None or not spec.submodule_search_locations:
        raise EmulatorError(
            "IBM's QPUs need the package qiskit-ibm-runtime, which is not installed. "
            "Run `pip install 'qrmi-workflows[emulator]'`."
        )
    return Path(spec.submodule_search_locations[0]) / "fake_provider" / "backends"
