"""QPU definitions (`qrmi_config.json`), the site policy, and where both are looked for.

`qrmi_config.json` is upstream's file: which QPUs exist, and with which credentials. The site
policy is ours: how this site's scheduler grants each of them. A QPU that the site grants through
upstream's SPANK plugin needs no definition that users can read: the plugin reads its own.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import ConfigError, UnknownQPUError

__all__ = [
    "CONFIG_VARIABLE",
    "LANES_VARIABLE",
    "SITE_VARIABLE",
    "STATE_VARIABLE",
    "QPUDefinition",
    "QPUPolicy",
    "SitePolicy",
    "find_config",
    "find_site_policy",
    "home_folder",
    "lanes_wanted",
    "load_qpus",
    "load_site_policy",
    "select_qpu",
    "state_folder",
]

CONFIG_VARIABLE = "QPU_CONFIG"
SITE_VARIABLE = "QPU_SITE"
STATE_VARIABLE = "QPU_STATE"
LANES_VARIABLE = "QPU_LANES"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_START = (
    'For a site of your own run `qpu sandbox up`, then `eval "$(qpu sandbox env)"`; else ask your '
    "administrators."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUDefinition:
    """One QPU of `qrmi_config.json`.

    Attributes:
        name: The name that jobs ask for.
        type: QRMI's resource type (`pasqal-cloud`).
        environment: QRMI's settings for it, without the `NAME_` prefix; holds credentials.
    """

    name: str
    type: str
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUPolicy:
    """How the site's scheduler grants one QPU.

    Attributes:
        name: The QPU's name.
        gres: Slurm's GRES without its count (`qpu:ibm_fez`); counts per node.
        licence: Slurm's licence without its count (`qpu_ibm_fez`); excludes across the cluster.
        qpu_option: Whether sbatch offers upstream's `--qpu=NAME`.
        partition: The partition that QPU jobs go to, when the site wants one.
        lanes: How many tasks the QPU prepares in parallel.
    """

    name: str
    gres: str | None = None
    licence: str | None = None
    qpu_option: bool = False
    partition: str | None = None
    lanes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """How this site grants its QPUs, and to whom it offers which.

    Attributes:
        path: The file that it was read from.
        qpus: The QPUs that the site's scheduler offers, by name.
    """

    path: Path
    qpus: Mapping[str, QPUPolicy]

    def qpu(self, name: str) -> QPUPolicy:
        """Return the policy of one QPU.

        Raises:
            UnknownQPUError: The site does not offer it.
        """
        if name not in self.qpus:
            where = f"in the site policy {self.path}"
            raise UnknownQPUError(name, self.qpus, where, "`qpu list` shows what can be asked for.")
        return self.qpus[name]


def find_config(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of `qrmi_config.json`: `$QPU_CONFIG`, the user's, or the site's.

    Raises:
        ConfigError: There is none.
    """
    return _find(environ, CONFIG_VARIABLE, "qrmi_config.json", Path("/etc/slurm/qrmi_config.json"))


def find_site_policy(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the site policy: `$QPU_SITE`, the user's, or the site's.

    Raises:
        ConfigError: There is none.
    """
    return _find(environ, SITE_VARIABLE, "site.toml", Path("/etc/qrmi-workflows/site.toml"))


def home_folder() -> Path:
    """Return the user's home directory.

    Raises:
        ConfigError: The user has none, as in some containers.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"the user {os.getuid()} has no home directory: $HOME is not set, and no entry of the "
            f"user database says it. Set $HOME; or ${CONFIG_VARIABLE}, ${SITE_VARIABLE}, "
            f"${STATE_VARIABLE} and $XDG_CACHE_HOME."
        ) from error


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the journal and the leases' records: `$QPU_STATE`, or the user's own.

    It must lie on a file system that all hosts of a job share.
    """
    if named := environ.get(STATE_VARIABLE):
        return Path(named)
    home = Path(environ.get("XDG_STATE_HOME") or home_folder() / ".local" / "state")
    return home / "qrmi-workflows"


def load_qpus(path: Path | None = None) -> dict[str, QPUDefinition]:
    """Read `qrmi_config.json`, by name.

    Args:
        path: The file; found by `find_config` when it is `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    path = path or find_config()
    document = _read_json(path)
    entries = document.get("resources") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(
            f"{path}: no list `resources`; allowed is "
            '{"resources": [{"name": …, "type": …, "environment": {…}}, …]}. '
            "Compare it with QRMI's documentation of qrmi_config.json."
        )
    definitions = [_definition(entry, f"{path}: resources[{i}]") for i, entry in enumerate(entries)]
    return {definition.name: definition for definition in definitions}


def select_qpu(name: str | None, qpus: Mapping[str, QPUDefinition], path: Path) -> QPUDefinition:
    """Return the QPU of that name, or the only one when no name is given.

    Raises:
        UnknownQPUError: There is none of that name.
        ConfigError: No name was given and there is not exactly one.
    """
    if name is None:
        if len(qpus) == 1:
            return next(iter(qpus.values()))
        raise ConfigError(
            f"no QPU was named and {path} has {len(qpus)}: {', '.join(sorted(qpus)) or 'none'}. "
            'Name one of them: `--qpu NAME`, or `open_lease("NAME")`.'
        )
    if name not in qpus:
        raise UnknownQPUError(name, qpus, f"in {path}", "`qpu list` shows what can be asked for.")
    return qpus[name]


def lanes_wanted(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many lanes a job is to use, as `$QPU_LANES` says; `None` when it is not set.

    Raises:
        ConfigError: It is no whole number from 1 on.
    """
    value = environ.get(LANES_VARIABLE)
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"${LANES_VARIABLE} = {value!r}; allowed is a whole number from 1 on. Correct it."
        )
    return int(value)


def load_site_policy(path: Path | None = None) -> SitePolicy:
    """Read the site policy.

    A TOML file: `[defaults]` for all QPUs, `[qpus.NAME]` for each that the site offers, both with
    the keys of `QPUPolicy`; `{qpu}` stands for the QPU's name::

        [defaults]
        gres = "qpu:{qpu}"
        licence = "qpu_{qpu}"

        [qpus.ibm_fez]
        lanes = 5

    Args:
        path: The file; found by `find_site_policy` when it is `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    path = path or find_site_policy()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}. Correct that place.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_unknown_keys(document, {"defaults", "qpus"}, str(path))
    defaults, qpus = document.get("defaults", {}), document.get("qpus", {})
    if not isinstance(defaults, dict) or not isinstance(qpus, dict) or not qpus:
        raise ConfigError(
            f"{path}: offers no QPU; allowed is one table [qpus.NAME] for each QPU. Add them."
        )
    return SitePolicy(
        path=path,
        qpus={name: _policy(name, defaults, table, path) for name, table in qpus.items()},
    )


def _find(environ: Mapping[str, str], variable: str, name: str, site: Path) -> Path:
    if named := environ.get(variable):
        return Path(named)
    home = Path(environ.get("XDG_CONFIG_HOME") or home_folder() / ".config")
    candidates = (home / "qrmi-workflows" / name, site)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise ConfigError(f"no {name}: ${variable} is not set and there is no {looked}. {_START}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}. Correct that place.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: {error.strerror or error}. Name a file that you can read. {_START}"
    )


def _definition(entry: object, where: str) -> QPUDefinition:
    if not isinstance(entry, dict):
        raise ConfigError(  # not its value, which may hold credentials
            f"{where}: a {type(entry).__name__}; allowed is an object with `name`, `type` and "
            "`environment`. Write one."
        )
    for key in ("name", "type"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ConfigError(f"{where}: no string `{key}`. Add it.")
    _check_name(entry["name"], where)
    environment = entry.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(value, str) for value in environment.values()
    ):
        raise ConfigError(f"{where} ({entry['name']}): `environment` must map strings to strings.")
    return QPUDefinition(name=entry["name"], type=entry["type"], environment=environment)


def _policy(name: str, defaults: dict[str, Any], table: object, path: Path) -> QPUPolicy:
    where = f"{path}: [qpus.{name}]"
    _check_name(name, where)
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {table!r} is no table. Write [qpus.{name}].")
    merged: dict[str, Any] = defaults | table
    _refuse_unknown_keys(merged, {item.name for item in fields(QPUPolicy)} - {"name"}, where)
    for key, value in merged.items():
        _check_setting(key, value, where)
    settings: dict[str, Any] = {
        key: value.replace("{qpu}", name) if isinstance(value, str) else value
        for key, value in merged.items()
    }
    return QPUPolicy(name=name, **settings)


def _check_setting(key: str, value: object, where: str) -> None:
    if key == "lanes":
        valid, allowed = type(value) is int and value > 0, "a whole number from 1 on"
    elif key == "qpu_option":
        valid, allowed = isinstance(value, bool), "true or false"
    else:
        valid, allowed = isinstance(value, str), "a string"
    if not valid:
        raise ConfigError(f"{where}: {key} = {value!r}; allowed is {allowed}. Correct it.")


def _refuse_unknown_keys(table: Mapping[str, object], allowed: set[str], where: str) -> None:
    if unknown := sorted(set(table) - allowed):
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}. "
            "Correct or remove it."
        )


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: the name {name!r} cannot be used in a scheduler's options; allowed are "
            "letters, digits, `_`, `.` and `-`. Rename it."
        )
