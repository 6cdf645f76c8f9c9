"""The paths of a sandbox, and the Slurm programs it runs.

A sandbox has two directories: the state directory, which the user may choose, and a runtime
directory of mode 0700 under /tmp for Unix sockets. A socket's path is limited to 107 bytes, and
home directories on parallel file systems do not always support locks. slurmd's spool is in the
runtime directory as well, because Slurm creates a socket there for each job step.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config.variables import QPU_SANDBOX
from qrmi_workflows.errors import SandboxError

__all__ = [
    "CLIENTS",
    "SBIN_DIRECTORIES",
    "WRAPPERS_MARKER",
    "Layout",
    "Programs",
    "default_directory",
    "find_programs",
    "is_private",
    "make_runtime_directory",
    "runtime_directories",
]

WRAPPERS_MARKER = ".qpu-sandbox"  # an empty file that tells a sandbox's bin from a real one
CLIENTS = (
    "sacct",
    "sacctmgr",
    "salloc",
    "sattach",
    "sbatch",
    "sbcast",
    "scancel",
    "scontrol",
    "scrontab",
    "sdiag",
    "sinfo",
    "sprio",
    "squeue",
    "sreport",
    "srun",
    "sshare",
    "sstat",
    "strigger",
)
_REQUIRED_CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
_DAEMONS = ("munged", "slurmctld", "slurmd")
_NOT_IN_SLURM_CONF = re.compile(r"[\s#%,=\"'\\]")
_PRIVATE_MODE = 0o700
_SITES_MODE = 0o711  # root runs jobs of other users, who may pass but not list the folder
_OWNER_FILE = "sandbox"
SBIN_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one sandbox.

    Args:
        directory: The state directory, as an absolute path.

    Raises:
        SandboxError: slurm.conf cannot hold this path.
    """

    directory: Path

    def __post_init__(self) -> None:
        """Reject a path that slurm.conf cannot hold."""
        if invalid := _NOT_IN_SLURM_CONF.search(str(self.directory)):
            raise SandboxError(
                f"the sandbox directory {str(self.directory)!r} contains {invalid[0]!r}; white "
                "space and # % , = \" ' \\ are not allowed, because slurm.conf cannot quote them. "
                "Choose another directory with --dir."
            )

    @property
    def state_file(self) -> Path:
        """The nodes, QPUs, ports and processes of a running sandbox."""
        return self.directory / "sandbox.json"

    @property
    def lock_file(self) -> Path:
        """The lock that is held while the sandbox starts or stops."""
        return self.directory / "lock"

    @property
    def site_policy(self) -> Path:
        """The site policy, which says how QPUs are granted."""
        return self.directory / "site.toml"

    @property
    def qrmi_config(self) -> Path:
        """The QPUs' endpoints and credentials, written by the emulator."""
        return self.emulator / "qrmi_config.json"

    @property
    def emulator(self) -> Path:
        """The emulator's directory."""
        return self.directory / "emulator"

    @property
    def emulator_settings(self) -> Path:
        """The copy of the emulator's settings file, if one was given."""
        return self.directory / "emulator.toml"

    @property
    def etc(self) -> Path:
        """Slurm's configuration directory."""
        return self.directory / "etc"

    @property
    def slurm_conf(self) -> Path:
        """Slurm's main configuration file."""
        return self.etc / "slurm.conf"

    @property
    def munge_key(self) -> Path:
        """The key of the private munged, readable by this user only."""
        return self.etc / "munge.key"

    @property
    def slurmdbd_conf(self) -> Path:
        """The configuration of slurmdbd."""
        return self.etc / "slurmdbd.conf"

    @property
    def database(self) -> Path:
        """The files of the accounting's database."""
        return self.directory / "database"

    @property
    def wrappers(self) -> Path:
        """The wrappers that run Slurm's commands in this sandbox."""
        return self.directory / "bin"

    @property
    def controller_state(self) -> Path:
        """The StateSaveLocation of slurmctld."""
        return self.directory / "slurmctld"

    @property
    def leases(self) -> Path:
        """The journal and leases of this sandbox: job ids are unique only within one cluster."""
        return self.directory / "state"

    @property
    def logs(self) -> Path:
        """The directory of the daemons' logs."""
        return self.directory / "log"

    @property
    def site(self) -> Path:
        """The site scripts of a sandbox that has them, and their state."""
        return self.directory / "site"

    def log(self, daemon: str) -> Path:
        """Return the path of a daemon's log."""
        return self.logs / f"{daemon}.log"

    def create(self) -> None:
        """Create the directories, accessible to this user only.

        Raises:
            SandboxError: A directory cannot be created.
        """
        try:
            self.directory.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
            for directory in (
                self.emulator,
                self.etc,
                self.wrappers,
                self.controller_state,
                self.leases,
                self.logs,
            ):
                directory.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
                directory.chmod(_PRIVATE_MODE)
        except OSError as error:
            raise SandboxError(
                f"{self.directory}: {error.strerror or error}. Choose a writable directory with "
                "--dir."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The installed programs of Slurm and MUNGE, as absolute paths.

    Attributes:
        munged: MUNGE's daemon.
        slurmctld: Slurm's controller.
        slurmd: Slurm's node daemon.
        clients: The user commands, by name.
    """

    munged: Path
    slurmctld: Path
    slurmd: Path
    clients: Mapping[str, Path]


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return `$QPU_SANDBOX`, or a directory under `$XDG_STATE_HOME` (`~/.local/state`)."""
    if directory := environ.get(QPU_SANDBOX):
        return Path(directory)
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "qrmi-workflows" / "sandbox"


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Find Slurm and MUNGE on PATH or in the sbin directories.

    Skip every sandbox's wrappers: one sandbox may be started from the shell of another.

    Raises:
        SandboxError: A required program is not installed.
    """
    entries = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    real = [entry for entry in entries if not (Path(entry) / WRAPPERS_MARKER).exists()]
    path = os.pathsep.join([*real, *SBIN_DIRECTORIES])
    clients = {name: Path(found) for name in CLIENTS if (found := shutil.which(name, path=path))}
    daemons = {name: Path(found) for name in _DAEMONS if (found := shutil.which(name, path=path))}
    found_names = daemons.keys() | clients.keys()
    if missing := [name for name in (*_DAEMONS, *_REQUIRED_CLIENTS) if name not in found_names]:
        raise SandboxError(
            f"Slurm is not installed: {', '.join(missing)} not found on PATH. A sandbox needs "
            "Slurm 22.05 or later and MUNGE. Install them with `apt-get install slurm-wlm munge` "
            "(Debian, Ubuntu)."
        )
    return Programs(clients=clients, **daemons)


def make_runtime_directory(layout: Layout) -> Path:
    """Create a directory of mode 0700 whose path is short enough for Unix sockets."""
    runtime = Path(tempfile.mkdtemp(prefix="qpu-", dir=_runtime_base()))
    (runtime / _OWNER_FILE).write_text(str(layout.directory), encoding="utf-8")
    return runtime


def runtime_directories(layout: Layout) -> list[Path]:
    """Find the runtime directories that were created for a sandbox, even if it is lost."""
    found = []
    for base in {_runtime_base(), "/tmp"}:  # noqa: S108 - TMPDIR may have changed
        for path in Path(base).glob(f"qpu-*/{_OWNER_FILE}"):
            with suppress(OSError):
                owner = path.read_text(encoding="utf-8")
                if is_private(path.parent) and owner == str(layout.directory):
                    found.append(path.parent)
    return found


def _runtime_base() -> str:
    base = tempfile.gettempdir()
    is_fit = len(base) <= 20 and not _NOT_IN_SLURM_CONF.search(base)
    return base if is_fit else "/tmp"  # noqa: S108 - holds unguessable directories of mode 0700


def is_private(directory: Path) -> bool:
    """Return whether a directory exists, belongs to this user, and no other user can list it."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and stat.S_IMODE(status.st_mode) in (_PRIVATE_MODE, _SITES_MODE)
    )
