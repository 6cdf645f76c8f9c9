"""Where this user's files are: `QPU_*` variables, then the XDG base directories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qrmi_workflows.config.variables import QPU_CONFIG, QPU_SITE, QPU_STATE
from qrmi_workflows.errors import ConfigError

__all__ = ["NO_SITE_REMEDY", "cache_folder", "find_file", "home_folder", "state_folder"]

NO_SITE_REMEDY = (
    'For a site of your own, run `qpu sandbox up`, then `eval "$(qpu sandbox env)"`; otherwise ask '
    "your administrators."
)
"""The remedy in messages if no site is configured."""

_PROJECT = "qrmi-workflows"


def home_folder() -> Path:
    """Return the user's home directory.

    Raises:
        ConfigError: The user has none, as in some containers.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"the user {os.getuid()} has no home directory: $HOME is not set and the user database "
            f"has no entry. Set $HOME; or ${QPU_CONFIG}, ${QPU_SITE}, ${QPU_STATE} and "
            "$XDG_CACHE_HOME."
        ) from error


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the journal and the leases: `$QPU_STATE`, or one in the user's home.

    It must be on a file system that all hosts of a job share.
    """
    if named := environ.get(QPU_STATE):
        return Path(named)
    return _xdg_folder(environ, "XDG_STATE_HOME", ".local/state")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of data that can be fetched again: `$XDG_CACHE_HOME/qrmi-workflows`."""
    return _xdg_folder(environ, "XDG_CACHE_HOME", ".cache")


def find_file(environ: Mapping[str, str], variable: str, name: str, site: Path) -> Path:
    """Find a configuration file: the one that its variable names, the user's, or the site's.

    Args:
        environ: The environment.
        variable: The variable that may name the file.
        name: The file's name in the user's configuration folder.
        site: The site's file.

    Raises:
        ConfigError: None of these files exists.
    """
    if named := environ.get(variable):
        return Path(named)
    candidates = (_xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / name, site)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    paths = " nor ".join(str(candidate) for candidate in candidates)
    raise ConfigError(
        f"no {name}: ${variable} is not set, and neither {paths} exists. {NO_SITE_REMEDY}"
    )


def _xdg_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    # https://specifications.freedesktop.org/basedir-spec/latest/
    base = environ.get(variable)
    return (Path(base) if base else home_folder() / below_home) / _PROJECT
