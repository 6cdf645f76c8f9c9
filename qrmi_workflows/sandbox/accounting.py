"""Slurm's own accounting in a sandbox: a private MariaDB, and slurmdbd.

The database listens on a socket in the private runtime directory alone, and lets in nobody but the
user who started it (authentication by the socket). Its files stay in the state directory, so that
`sacct` knows the jobs of earlier runs of the sandbox.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox.layout import SBIN_DIRECTORIES, Layout
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.state.users import user_name

__all__ = [
    "DatabasePrograms",
    "create_database",
    "database_argv",
    "database_socket",
    "find_database_programs",
    "render_accounting",
    "render_slurmdbd_conf",
]

_CREATION_SECONDS = 120.0

_SLURM_CONF = """\

# Accounting: which jobs held a QPU, by its GRES and by its licence.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
# The munged by which slurmdbd is reached (slurm.conf(5)).
AccountingStoragePass={runtime}/munge.socket
AccountingStorageTRES={tres}
AccountingStoreFlags=job_comment
"""

_SLURMDBD_CONF = """\
# Written by `qpu sandbox up`, which overwrites it each time.
AuthType=auth/munge
AuthInfo=socket={runtime}/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
PidFile={runtime}/slurmdbd.pid
DebugLevel=info

# Through the socket that $MYSQL_UNIX_PORT names, where no password is needed.
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct_db
"""


class DatabasePrograms:
    """The installed programs of MariaDB, and slurmdbd, as absolute paths.

    Args:
        mariadbd: The database server.
        install: The program that creates a database.
        slurmdbd: Slurm's database daemon.
    """

    def __init__(self, mariadbd: Path, install: Path, slurmdbd: Path) -> None:
        self.mariadbd = mariadbd
        self.install = install
        self.slurmdbd = slurmdbd


def find_database_programs() -> DatabasePrograms:
    """Find MariaDB and slurmdbd on PATH or in the sbin directories.

    Raises:
        SandboxError: One of them is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN_DIRECTORIES])
    names = ("mariadbd", "mariadb-install-db", "slurmdbd")
    found = [shutil.which(name, path=path) for name in names]
    if missing := [name for name, where in zip(names, found, strict=True) if where is None]:
        raise SandboxError(
            f"{', '.join(missing)} not found on PATH: a sandbox with accounting needs MariaDB and "
            "slurmdbd. Install them with `apt-get install mariadb-server-core slurmdbd` (Debian, "
            "Ubuntu), or leave out --accounting."
        )
    return DatabasePrograms(*(Path(str(where)) for where in found))


def create_database(layout: Layout, programs: DatabasePrograms) -> None:
    """Create the database if there is none.

    Raises:
        SandboxError: It could not be created.
    """
    if layout.database.exists():
        return
    unfinished = layout.database.with_name("database.tmp")  # of a command that was killed
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    argv = [
        str(programs.install),
        "--no-defaults",
        f"--datadir={unfinished}",
        *_as_root(),
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={user_name()}",
        "--skip-test-db",
        "--skip-name-resolve",
        "--innodb-log-file-size=16M",
    ]
    done = run_command(argv, timeout=_CREATION_SECONDS)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise SandboxError(
            f"{programs.install} failed with exit status {done.returncode}: {' '.join(lines)} Fix "
            "this and try again."
        )
    unfinished.rename(layout.database)


def database_socket(runtime: Path) -> Path:
    """Return the path of the database's socket."""
    return runtime / "mariadb.socket"


def database_argv(layout: Layout, programs: DatabasePrograms, runtime: Path) -> list[str]:
    """Build the command that runs the database in the foreground."""
    return [
        str(programs.mariadbd),
        "--no-defaults",
        f"--datadir={layout.database}",
        *_as_root(),
        f"--socket={database_socket(runtime)}",
        f"--pid-file={runtime}/mariadb.pid",
        f"--tmpdir={runtime}",
        "--skip-networking",
        "--skip-name-resolve",
        # Small and quick: it is a sandbox's.
        "--performance-schema=off",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=16M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-flush-log-at-trx-commit=0",
    ]


def render_accounting(port: int, runtime: Path, qpus: tuple[str, ...]) -> str:
    """Render what slurm.conf has for accounting."""
    each = [tres for name in qpus for tres in (f"gres/qpu:{name}", f"license/qpu_{name}")]
    return _SLURM_CONF.format(port=port, runtime=runtime, tres=",".join(["gres/qpu", *each]))


def render_slurmdbd_conf(port: int, runtime: Path) -> str:
    """Render slurmdbd.conf."""
    return _SLURMDBD_CONF.format(port=port, runtime=runtime, user=user_name())


def _as_root() -> list[str]:
    return [f"--user={user_name()}"] if os.getuid() == 0 else []  # MariaDB insists on it
