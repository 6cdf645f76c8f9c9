"""Where a sandbox keeps its files, and which of Slurm's programs it runs.

Two folders: the state folder that the user names, and a short one of mode 0700 under /tmp for
what needs a Unix socket: their paths end at 107 bytes, and home folders on parallel file systems
do not always lock. Slurm keeps a socket beside each job step in its spool, so that is there too.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.errors import SandboxError

__all__ = [
    "CLIENTS",
    "DIRECTORY_VARIABLE",
    "WRAPPERS_MARK",
    "Layout",
    "Programs",
    "default_directory",
    "find_programs",
    "is_private",
    "make_runtime_directory",
]

DIRECTORY_VARIABLE = "QPU_SANDBOX"
WRAPPERS_MARK = ".qpu-sandbox"
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
_NOT_IN_SLURM_CONF = re.compile(r"[\s#%,=\"'\\]")
_PRIVATE = 0o700
_ADMIN_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one sandbox.

    Args:
        directory: The state folder, absolute.

    Raises:
        SandboxError: slurm.conf cannot hold this path.
    """

    directory: Path

    def __post_init__(self) -> None:
        """Refuse what slurm.conf has no way to quote."""
        if bad := _NOT_IN_SLURM_CONF.search(str(self.directory)):
            raise SandboxError(
                f"the sandbox's folder {str(self.directory)!r} contains {bad[0]!r}; allowed are "
                "paths without white space and without any of # % , = \" ' \\, which slurm.conf "
                "cannot quote. Name another one with --dir."
            )

    @property
    def state_file(self) -> Path:
        """What runs: nodes, QPUs, ports and processes."""
        return self.directory / "sandbox.json"

    @property
    def lock_file(self) -> Path:
        """Held while a sandbox starts or stops."""
        return self.directory / "lock"

    @property
    def site_policy(self) -> Path:
        """How this site grants its QPUs."""
        return self.directory / "site.toml"

    @property
    def qrmi_config(self) -> Path:
        """The QPUs' endpoints and credentials; the emulator writes it."""
        return self.emulator / "qrmi_config.json"

    @property
    def emulator(self) -> Path:
        """The emulator's own folder."""
        return self.directory / "emulator"

    @property
    def emulator_settings(self) -> Path:
        """What the emulator was told to serve, where it was given as a file."""
        return self.directory / "emulator.toml"

    @property
    def etc(self) -> Path:
        """Slurm's configuration."""
        return self.directory / "etc"

    @property
    def slurm_conf(self) -> Path:
        """Slurm's configuration file."""
        return self.etc / "slurm.conf"

    @property
    def munge_key(self) -> Path:
        """The secret that admits this user alone."""
        return self.etc / "munge.key"

    @property
    def wrappers(self) -> Path:
        """Slurm's commands, bound to this sandbox."""
        return self.directory / "bin"

    @property
    def controller_state(self) -> Path:
        """Where slurmctld saves its jobs."""
        return self.directory / "slurmctld"

    @property
    def leases(self) -> Path:
        """The journal and the leases of this site: job ids mean something else elsewhere."""
        return self.directory / "state"

    @property
    def logs(self) -> Path:
        """One log for each daemon."""
        return self.directory / "log"

    def log(self, daemon: str) -> Path:
        """Return the log of one daemon."""
        return self.logs / f"{daemon}.log"

    def create(self) -> None:
        """Make the folders, readable by this user alone.

        Raises:
            SandboxError: They cannot be made.
        """
        try:
            self.directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            for folder in (
                self.emulator,
                self.etc,
                self.wrappers,
                self.controller_state,
                self.leases,
                self.logs,
            ):
                folder.mkdir(mode=_PRIVATE, exist_ok=True)
                folder.chmod(_PRIVATE)
        except OSError as error:
            raise SandboxError(
                f"{self.directory}: {error.strerror or error}. Name a folder that you can write "
                "with --dir."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The real programs of Slurm and MUNGE, by absolute path.

    Attributes:
        munged: MUNGE's daemon.
        slurmctld: Slurm's controller.
        slurmd: Slurm's daemon of a node.
        clients: The commands for users, by name.
    """

    munged: Path
    slurmctld: Path
    slurmd: Path
    clients: Mapping[str, Path]


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return `$QPU_SANDBOX`, or a folder under `$XDG_STATE_HOME` (`~/.local/state`)."""
    if named := environ.get(DIRECTORY_VARIABLE):
        return Path(named)
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "qrmi-workflows" / "sandbox"


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Find Slurm and MUNGE on PATH and where administrators' commands lie.

    The wrappers of any sandbox are passed over: one may be started in the shell of another.

    Raises:
        SandboxError: One of them is not installed.
    """
    entries = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    real = [entry for entry in entries if not (Path(entry) / WRAPPERS_MARK).exists()]
    path = os.pathsep.join([*real, *_ADMIN_FOLDERS])
    clients = {name: Path(found) for name in CLIENTS if (found := shutil.which(name, path=path))}
    needed = ("munged", "slurmctld", "slurmd")
    daemons = {name: Path(found) for name in needed if (found := shutil.which(name, path=path))}
    found_names = daemons.keys() | clients.keys()
    if missing := [
        name
        for name in (*needed, "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
        if name not in found_names
    ]:
        raise SandboxError(
            f"Slurm is not installed here: no {', '.join(missing)} on PATH. A sandbox needs Slurm "
            "22.05 or later and MUNGE: `apt-get install slurm-wlm munge` (Debian, Ubuntu)."
        )
    return Programs(clients=clients, **daemons)


def make_runtime_directory() -> Path:
    """Make a folder of mode 0700 with a path short enough for Unix sockets."""
    base = tempfile.gettempdir()
    if len(base) > 20 or _NOT_IN_SLURM_CONF.search(base):
        base = "/tmp"  # noqa: S108 - mkdtemp makes an unguessable folder of mode 0700 in it
    return Path(tempfile.mkdtemp(prefix="qpu-", dir=base))


def is_private(folder: Path) -> bool:
    """Say whether a folder is there, is this user's, and is closed to all others."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and stat.S_IMODE(found.st_mode) == _PRIVATE
    )
