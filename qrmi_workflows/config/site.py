"""The site policy (`site.toml`): how this site's scheduler grants each QPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrmi_workflows.config.emulated import EMULATED_LANES, is_emulated
from qrmi_workflows.config.folders import NO_SITE_REMEDY, find_file
from qrmi_workflows.config.policy_keys import Mistake, find_mistakes, merge
from qrmi_workflows.config.toml_lines import line_of
from qrmi_workflows.config.variables import QPU_SITE
from qrmi_workflows.errors import ConfigError, UnknownQPUError

__all__ = [
    "QPUPolicy",
    "SiteFolders",
    "SitePolicy",
    "find_site_policy",
    "load_site_policy",
    "policy_mistakes",
    "readable_site_policy",
    "site_policy_for",
]

logger = logging.getLogger(__name__)

_warned: set[str] = set()

_SITE_FILE = Path("/etc/qrmi-workflows/site.toml")
_STATE_FOLDER = Path("/var/lib/qrmi-workflows")


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUPolicy:
    """How the site's scheduler grants one QPU.

    Attributes:
        name: The QPU's name.
        gres: Slurm's GRES without its count, with a type (`qpu:ibm_fez`) or without (`qpu`);
            counted per node.
        gres_nodes: The nodes that have the GRES, as Slurm writes lists of nodes (`gw[1-2]`).
        licence: Slurm's licence without its count (`qpu_ibm_fez`); counted across the cluster.
        qpu_option: Whether sbatch takes `--qpu=NAME`, the option of QRMI's SPANK plugin.
        partition: The partition for jobs that hold the QPU; the scheduler's default if `None`.
        partitions: Partitions of which the scheduler chooses one, instead of `partition`.
        lanes: How many tasks the QPU prepares in parallel.
        exclusive: Whether one job holds the whole QPU, with all its lanes. If `False`, jobs share
            it, and each unit of its GRES and licence is a lane. If `None`, the number of units that
            the scheduler counts decides.
        users: The users who may use it.
        groups: The groups whose members may use it, besides `users`. If both are empty, everybody
            may.
        accounts: The scheduler's accounts whose jobs may use it; if empty, all.
        require_grant: Whether a job must hold the QPU to use it.
        kill_wait: The seconds between the scheduler's SIGTERM and SIGKILL that releasing the QPU
            takes at most, if the site has set them for it.
        mode: The kind of session that stages get: `auto`, `dedicated` or `batch`.
        warm_up: Whether keepers of stages may run tasks of their own to make a session active.
        waiting_cost: How many billed seconds a second of waiting in the vendor's queue is worth,
            for what a stage does with an idle session.
        interactive_ttl: For how many seconds an idle session stays active; the vendor's default if
            `None`.
        task_seconds: How many seconds a task counts as in budgets while nobody knows how long it
            takes; if `None`, it reserves all that is left of them.
        options: Settings for a scheduler other than Slurm; that scheduler defines their names.
    """

    name: str
    gres: str | None = None
    gres_nodes: str | None = None
    licence: str | None = None
    qpu_option: bool = False
    partition: str | None = None
    partitions: tuple[str, ...] = ()
    lanes: int = 1
    exclusive: bool | None = None
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    require_grant: bool = True
    kill_wait: float | None = None
    mode: str = "auto"
    warm_up: bool = True
    waiting_cost: float = 1.0
    interactive_ttl: float | None = None
    task_seconds: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_partitions(self) -> tuple[str, ...]:
        """The partitions that grant the QPU; empty if the policy leaves that to the scheduler."""
        return self.partitions or ((self.partition,) if self.partition else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFolders:
    """The site's own folders.

    Attributes:
        records: The folder of all users' lease records; `None` if each user has only their own.
        budgets: The folder of the budgets and of what has been spent; `None` without budgets.
        state: The folder of what root's programs keep.
        maintenance: The folder of the messages about QPUs in maintenance, which all may read.
    """

    records: Path | None = None
    budgets: Path | None = None
    state: Path = _STATE_FOLDER
    maintenance: Path = _STATE_FOLDER / "maintenance"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """Which QPUs this site's scheduler offers, and how.

    Attributes:
        path: The file it was read from.
        qpus: The QPUs on offer, by name.
        scheduler: The site's scheduler; detected from the environment if `None`.
        folders: The site's own folders.
    """

    path: Path
    qpus: Mapping[str, QPUPolicy]
    scheduler: str | None = None
    folders: SiteFolders = field(default_factory=SiteFolders)

    def qpu(self, name: str) -> QPUPolicy:
        """Return the policy of one QPU; an emulated one needs nothing of the site.

        Raises:
            UnknownQPUError: The site does not offer it.
        """
        if is_emulated(name):
            return QPUPolicy(name=name, lanes=EMULATED_LANES, require_grant=False)
        if name not in self.qpus:
            where = f"in the site policy {self.path}"
            raise UnknownQPUError(name, self.qpus, where, "`qpu list` shows the QPUs on offer.")
        return self.qpus[name]

    def place(self, qpu: str, key: str) -> str:
        """Return the file and the line that set a QPU's key, for messages."""
        return self._place(("qpus", qpu, key), ("defaults", key))

    def place_of_scheduler(self) -> str:
        """Return the file and the line that name the scheduler, for messages."""
        return self._place(("scheduler",))

    def _place(self, *paths: tuple[str, ...]) -> str:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return str(self.path)
        line = next((line for keys in paths if (line := line_of(text, keys))), None)
        return str(self.path) if line is None else f"{self.path}:{line}"


def find_site_policy(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the site policy: `$QPU_SITE`, the user's, or the site's.

    Raises:
        ConfigError: None of these files exists.
    """
    return find_file(environ, QPU_SITE, "site.toml", _SITE_FILE)


def load_site_policy(path: Path | None = None) -> SitePolicy:
    """Read the site policy.

    The file is TOML: `[defaults]` for all QPUs, `[qpus.NAME]` for each that the site offers, both
    with the keys of `QPUPolicy`; `{qpu}` stands for the QPU's name. `[site]` has the keys of
    `SiteFolders`. `scheduler` at the top names the site's scheduler::

        scheduler = "slurm"

        [site]
        records = "/shared/qpu/records"

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
    document, text = _read_toml(path)
    if mistakes := list(find_mistakes(document)):
        rest = len(mistakes) - 1
        more = f" ({rest} more: run `qpu doctor`.)" if rest else ""
        raise ConfigError(f"{_render(mistakes[0], path, text)}{more}")
    defaults, qpus = document.get("defaults", {}), document["qpus"]
    return SitePolicy(
        path=path,
        qpus={name: _policy(name, merge(defaults, table)) for name, table in qpus.items()},
        scheduler=document.get("scheduler"),
        folders=_folders(document.get("site", {})),
    )


def readable_site_policy(environ: Mapping[str, str] = os.environ) -> SitePolicy | None:
    """Return the site policy; `None` if there is none, or none without mistakes.

    A lease does not fail because of a mistake in it; a warning names the mistake, once.
    """
    try:
        path = find_site_policy(environ)
    except (ConfigError, OSError):
        return None  # nothing says that the scheduler grants QPUs
    try:
        return load_site_policy(path)
    except ConfigError as error:
        if str(error) not in _warned:
            logger.warning("cannot tell how the scheduler grants QPUs: %s", error)
            _warned.add(str(error))
        return None


def site_policy_for(qpus: Iterable[str], path: Path | None = None) -> SitePolicy:
    """Read the site policy; where there is none, emulated QPUs do without.

    Args:
        qpus: The QPUs that are asked for.
        path: The file; `find_site_policy` finds it if `None`.

    Raises:
        ConfigError: The file is missing, unreadable or malformed.
    """
    if path is None and all(map(is_emulated, qpus)):
        try:
            path = find_site_policy()
        except ConfigError:
            return SitePolicy(path=_SITE_FILE, qpus={})
    return load_site_policy(path)


def policy_mistakes(path: Path) -> list[str]:
    """Return all mistakes in a site policy, each with the line to correct.

    Raises:
        ConfigError: The file is missing, unreadable or not TOML.
    """
    document, text = _read_toml(path)
    return [_render(mistake, path, text) for mistake in find_mistakes(document)]


def _render(mistake: Mistake, path: Path, text: str) -> str:
    # The nearest table, if the key itself is missing.
    paths = (mistake.keys[:count] for count in range(len(mistake.keys), 0, -1))
    line = next((line for keys in paths if (line := line_of(text, keys))), None)
    return f"{path}{'' if line is None else f':{line}'}: {mistake.text}"


def _read_toml(path: Path) -> tuple[dict[str, Any], str]:
    import tomllib  # many processes have no site policy to read

    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}. Correct the file.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}. Name a file that you can read. {NO_SITE_REMEDY}"
        ) from error


def _policy(name: str, settings: Mapping[str, Any]) -> QPUPolicy:
    return QPUPolicy(name=name, **{key: _named(value, name) for key, value in settings.items()})


def _named(value: Any, qpu: str) -> Any:
    """Replace `{qpu}` in a setting by the QPU's name."""
    if isinstance(value, dict):
        return {key: _named(item, qpu) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_named(item, qpu) for item in value)
    return value.replace("{qpu}", qpu) if isinstance(value, str) else value


def _folders(table: Mapping[str, str]) -> SiteFolders:
    folders = {key: Path(value) for key, value in table.items()}
    state = folders.get("state", _STATE_FOLDER)
    return SiteFolders(**{"maintenance": state / "maintenance", **folders})
