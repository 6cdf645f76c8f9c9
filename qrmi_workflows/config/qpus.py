"""QPU definitions (`qrmi_config.json`): which QPUs exist, and the credentials for each.

The file is QRMI's own. A QPU that the site grants through QRMI's SPANK plugin needs no definition
that users can read: the plugin reads its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrmi_workflows.config.folders import NO_SITE_REMEDY, find_file
from qrmi_workflows.config.variables import QPU_CONFIG
from qrmi_workflows.errors import ConfigError, UnknownQPUError

__all__ = [
    "QPUDefinition",
    "find_config",
    "load_dynamic",
    "load_qpus",
    "require_valid_name",
    "select_qpu",
]

_SITE_FILE = Path("/etc/slurm/qrmi_config.json")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUDefinition:
    """One entry of `qrmi_config.json`.

    Attributes:
        name: The name that jobs ask for.
        type: QRMI's resource type (`pasqal-cloud`).
        environment: QRMI's settings for it, without the `NAME_` prefix; holds credentials.
        is_dynamic: Whether it stands for all QPUs of an account, each under the vendor's own name.
    """

    name: str
    type: str
    environment: Mapping[str, str] = field(repr=False)
    is_dynamic: bool = False


def find_config(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of `qrmi_config.json`: `$QPU_CONFIG`, the user's, or the site's.

    Raises:
        ConfigError: None of these files exists.
    """
    return find_file(environ, QPU_CONFIG, "qrmi_config.json", _SITE_FILE)


def load_qpus(path: Path | None = None) -> dict[str, QPUDefinition]:
    """Read `qrmi_config.json`; return the QPUs that it defines one by one, by name.

    Args:
        path: The file; `find_config` finds it if `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    return {name: each for name, each in _load(path).items() if not each.is_dynamic}


def load_dynamic(path: Path | None = None) -> dict[str, QPUDefinition]:
    """Read `qrmi_config.json`; return the entries that stand for all QPUs of an account, by name.

    QRMI marks them with `is_dynamic`, and finds the QPUs with its `ResourceProvider`.

    Args:
        path: The file; `find_config` finds it if `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    return {name: each for name, each in _load(path).items() if each.is_dynamic}


def _load(path: Path | None) -> dict[str, QPUDefinition]:
    path = path or find_config()
    document = _read_json(path)
    entries = document.get("resources") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(
            f"{path}: `resources` is missing or not a list; must be "
            '{"resources": [{"name": …, "type": …, "environment": {…}}, …]}. '
            "See QRMI's documentation of qrmi_config.json."
        )
    definitions = [_definition(entry, f"{path}: resources[{i}]") for i, entry in enumerate(entries)]
    return {definition.name: definition for definition in definitions}


def select_qpu(name: str | None, qpus: Mapping[str, QPUDefinition], path: Path) -> QPUDefinition:
    """Return the QPU with that name, or the only one if no name is given.

    Raises:
        UnknownQPUError: No QPU has that name.
        ConfigError: No name was given, and the file does not define exactly one QPU.
    """
    if name is None:
        if len(qpus) == 1:
            return next(iter(qpus.values()))
        raise ConfigError(
            f"no QPU named, and {path} defines {len(qpus)}: {', '.join(sorted(qpus)) or 'none'}. "
            'Name one: `--qpu NAME`, or `open_lease("NAME")`.'
        )
    if name not in qpus:
        raise UnknownQPUError(name, qpus, f"in {path}", "`qpu list` shows the QPUs on offer.")
    return qpus[name]


def require_valid_name(name: str, where: str) -> None:
    """Refuse a QPU name that cannot be used in a scheduler's options.

    Args:
        name: The name.
        where: The place it was read from, for the message.

    Raises:
        ConfigError: The name has characters other than `[A-Za-z0-9_.-]`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: invalid QPU name {name!r}: may contain only letters, digits, `_`, `.` and "
            "`-`. Rename it."
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}. Correct the file.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}. Name a file that you can read. {NO_SITE_REMEDY}"
        ) from error


def _definition(entry: object, where: str) -> QPUDefinition:
    if not isinstance(entry, dict):
        raise ConfigError(  # without its value, which may hold credentials
            f"{where}: has type {type(entry).__name__}; must be an object with `name`, `type` and "
            "`environment`. Correct it."
        )
    for key in ("name", "type"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ConfigError(f"{where}: `{key}` is missing or not a string. Add it.")
    require_valid_name(entry["name"], where)
    environment = entry.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(value, str) for value in environment.values()
    ):
        raise ConfigError(
            f"{where} ({entry['name']}): `environment` must map strings to strings. Correct it."
        )
    is_dynamic = entry.get("is_dynamic", False)
    if not isinstance(is_dynamic, bool):
        raise ConfigError(
            f"{where} ({entry['name']}): is_dynamic = {is_dynamic!r}: must be true or false. "
            "Correct it."
        )
    return QPUDefinition(
        name=entry["name"], type=entry["type"], environment=environment, is_dynamic=is_dynamic
    )
