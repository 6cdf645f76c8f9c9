"""Targets of IBM QPUs, made of the snapshots of backends in qiskit-ibm-runtime."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import qiskit_ibm_runtime

__all__ = ["snapshot_target"]


@functools.cache
def snapshot_target(model: str) -> str:
    """Return a target in the format of QRMI's client."""
    folder = Path(qiskit_ibm_runtime.__file__).parent / "fake_provider" / "backends" / model
    parts = {"configuration": "conf", "properties": "props"}
    return json.dumps(
        {
            name: json.loads((folder / f"{prefix}_{model}.json").read_text())
            for name, prefix in parts.items()
        }
    )
