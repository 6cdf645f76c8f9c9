"""The site policy (`site.toml`): how this site's scheduler grants each QPU."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qrmi_workflows.config.folders import NO_SITE_REMEDY, find_file
from qrmi_workflows.config.qpus import require_valid_name
from qrmi_workflows.config.variables import QPU_SITE
from qrmi_workflows.errors import ConfigError, UnknownQPUError

__all__ = ["QPUPolicy", "SitePolicy", "find_site_policy", "load_site_policy"]

_SITE_FILE = Path("/etc/qrmi-workflows/site.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUPolicy:
    """How the site's scheduler grants one QPU.

    Attributes:
        name: The QPU's name.
        gres: Slurm's GRES without its count (`qpu:ibm_fez`); counted per node.
        licence: Slurm's licence without its count (`qpu_ibm_fez`); counted across the cluster.
        qpu_option: Whether sbatch takes `--qpu=NAME`, the option of QRMI's SPANK plugin.
        partition: The partition for jobs that hold the QPU; the scheduler's default if `None`.
        lanes: How many tasks the QPU prepares in parallel.
        require_grant: Whether a job must hold the QPU to use it.
        options: Settings for a scheduler other than Slurm; that scheduler defines their names.
    """

    name: str
    gres: str | None = None
    licence: str | None = None
    qpu_option: bool = False
    partition: str | None = None
    lanes: int = 1
    require_grant: bool = True
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """Which QPUs this site's scheduler offers, and how.

    Attributes:
        path: The file it was read from.
        qpus: The QPUs on offer, by name.
        scheduler: The site's scheduler; detected from the environment if `None`.
    """

    path: Path
    qpus: Mapping[str, QPUPolicy]
    scheduler: str | None = None

    def qpu(self, name: str) -> QPUPolicy:
        """Return the policy of one QPU.

        Raises:
            UnknownQPUError: The site does not offer it.
        """
        if name not in self.qpus:
            where = f"in the site policy {self.path}"
            raise UnknownQPUError(name, self.qpus, where, "`qpu list` shows the QPUs on offer.")
        return self.qpus[name]


def find_site_policy(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the site policy: `$QPU_SITE`, the user's, or the site's.

    Raises:
        ConfigError: None of these files exists.
    """
    return find_file(environ, QPU_SITE, "site.toml", _SITE_FILE)


def load_site_policy(path: Path | None = None) -> SitePolicy:
    """Read the site policy.

    The file is TOML: `[defaults]` for all QPUs, `[qpus.NAME]` for each that the site offers, both
    with the keys of `QPUPolicy`; `{qpu}` stands for the QPU's name. `scheduler` at the top names
    the site's scheduler::

        scheduler = "slurm"

        [defaults]
        gres = "qpu:{qpu}"
        licence = "qpu_{qpu}"

        [qpus.ibm_fez]
        lanes = 5

    Args:
        path: The file; `find_site_policy` finds it if `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    path = path or find_site_policy()
    document = _read_toml(path)
    _refuse_unknown_keys(document, {"defaults", "qpus", "scheduler"}, str(path))
    defaults, qpus = document.get("defaults", {}), document.get("qpus", {})
    if not isinstance(defaults, dict) or not isinstance(qpus, dict) or not qpus:
        raise ConfigError(f"{path}: offers no QPU. Add a table [qpus.NAME] for each.")
    scheduler = document.get("scheduler")
    if scheduler is not None and not isinstance(scheduler, str):
        raise ConfigError(f"{path}: scheduler = {scheduler!r}: must be a string. Correct it.")
    return SitePolicy(
        path=path,
        qpus={name: _policy(name, defaults, table, path) for name, table in qpus.items()},
        scheduler=scheduler,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}. Correct the file.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}. Name a file that you can read. {NO_SITE_REMEDY}"
        ) from error


def _policy(name: str, defaults: dict[str, Any], table: object, path: Path) -> QPUPolicy:
    where = f"{path}: [qpus.{name}]"
    require_valid_name(name, where)
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {table!r} is not a table. Write [qpus.{name}].")
    merged: dict[str, Any] = defaults | table
    _refuse_unknown_keys(merged, {item.name for item in fields(QPUPolicy)} - {"name"}, where)
    for key, value in merged.items():
        _check_setting(key, value, where)
    return QPUPolicy(name=name, **{key: _named(value, name) for key, value in merged.items()})


def _named(value: Any, qpu: str) -> Any:
    """Replace `{qpu}` in a setting by the QPU's name."""
    if isinstance(value, dict):
        return {key: _named(item, qpu) for key, item in value.items()}
    return value.replace("{qpu}", qpu) if isinstance(value, str) else value


def _check_setting(key: str, value: object, where: str) -> None:
    if key == "lanes":
        is_valid, expected = type(value) is int and value > 0, "a positive integer"
    elif key in ("qpu_option", "require_grant"):
        is_valid, expected = isinstance(value, bool), "true or false"
    elif key == "options":
        is_valid = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        expected = "a table of strings"
    else:
        is_valid, expected = isinstance(value, str), "a string"
    if not is_valid:
        raise ConfigError(f"{where}: {key} = {value!r}: must be {expected}. Correct it.")


def _refuse_unknown_keys(table: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; must be one of: {', '.join(sorted(known))}. "
            "Correct or remove it."
        )
