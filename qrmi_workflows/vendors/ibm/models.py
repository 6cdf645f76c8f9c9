"""The machines of which qiskit-ibm-runtime has snapshots, which the emulator can imitate."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from qrmi_workflows.errors import ConfigError

__all__ = ["snapshot_file", "snapshot_folder", "snapshots"]


@functools.cache
def snapshots() -> dict[str, str]:
    """Return the names of the machines that have a snapshot, each for itself, sorted.

    Raises:
        ConfigError: qiskit-ibm-runtime is not installed.
    """
    names = {path.parent.name for path in snapshot_folder().glob("*/conf_*.json")}
    complete = (name for name in sorted(names) if snapshot_file(name, "props").exists())
    return {name: name for name in complete}


def snapshot_file(model: str, kind: str) -> Path:
    """Return the file of a machine's configuration (kind `conf`) or properties (kind `props`)."""
    return snapshot_folder() / model / f"{kind}_{model}.json"


@functools.cache
def snapshot_folder() -> Path:
    """Return the folder of the snapshots.

    Raises:
        ConfigError: qiskit-ibm-runtime is not installed.
    """
    # Locate the package without importing it, which takes seconds.
    spec = find_spec("qiskit_ibm_runtime")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "IBM's QPUs need the package qiskit-ibm-runtime, which is not installed. "
            "Run `pip install 'qrmi-workflows[emulator]'`."
        )
    return Path(spec.submodule_search_locations[0]) / "fake_provider" / "backends"
