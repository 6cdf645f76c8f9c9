"""Temporary users of this machine, and a Python that they may run."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import wait_until

__all__ = ["User", "python_for_all", "temporary_user"]

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An unprivileged user and their home folder."""

    name: str
    home: Path

    def run(self, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, in a fresh environment."""
        environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), **variables}
        assignments = [f"{name}={value}" for name, value in environ.items()]
        return subprocess.run(
            [
                "runuser",
                "-u",
                self.name,
                "--",
                "env",
                "-i",
                "-C",
                str(self.home),
                *assignments,
                *argv,
            ],
            capture_output=True,
            text=True,
            timeout=110,  # `sbatch --wait` may see the end of its job after 42 s only
            check=False,
        )


@contextmanager
def temporary_user(name: str, folder: Path) -> Iterator[User]:
    """Create a user, and delete it at the end."""
    home = folder / name
    subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", name],
        check=True,
    )
    try:
        home.mkdir(mode=0o700)
        shutil.chown(home, name, name)
        yield User(name=name, home=home)
    finally:
        wait_until(lambda: not _has_processes(name), f"the end of the processes of {name}")
        subprocess.run(["userdel", name], check=True)


def _has_processes(name: str) -> bool:
    """Return whether a user has processes, for which userdel would refuse to delete the user."""
    uid = pwd.getpwnam(name).pw_uid
    return any(uid in (process.info["uids"] or ()) for process in psutil.process_iter(["uids"]))


def python_for_all(user: User, folder: Path) -> tuple[str, ...]:
    """Return a Python with this package that any user may run: this one, or else a copy.

    Other users cannot reach a checkout or an interpreter in a folder like /root. The copy is a
    tree of hard links in a folder that they can reach (of real copies, if that is on another file
    system). No file's mode is changed.
    """
    if user.run(sys.executable, "-c", "import qrmi_workflows.cli.sandbox").returncode == 0:
        return (sys.executable,)
    base = Path(sys.executable).resolve()
    if user.run(str(base), "-c", "").returncode != 0:
        base = _link_base(base, folder / "python")
    libraries = f"LD_LIBRARY_PATH={base.parents[1] / 'lib'}"
    venv = folder / "venv"
    venv_of_base = ["env", libraries, str(base), "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(venv_of_base, check=True)
    packages = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    _link_tree(Path(sysconfig.get_path("purelib")), packages)
    _link_tree(_ROOT / "qrmi_workflows", packages / "qrmi_workflows")
    return ("env", libraries, str(venv / "bin" / "python"))


def _link_base(base: Path, folder: Path) -> Path:
    """Link the interpreter, its shared library and its standard library."""
    prefix = Path(sys.base_prefix)
    library = Path(sysconfig.get_path("stdlib")).relative_to(prefix)
    _link_tree(prefix / library, folder / library, leave_out=("site-packages", "test"))
    (folder / "bin").mkdir()
    for path in (base, *(prefix / "lib").glob("libpython*")):
        _link(str(path), str(folder / path.relative_to(prefix)))
    return folder / base.relative_to(prefix)


def _link_tree(source: Path, target: Path, leave_out: tuple[str, ...] = ()) -> None:
    shutil.copytree(
        source,
        target,
        copy_function=_link,
        ignore=shutil.ignore_patterns(*leave_out),
        dirs_exist_ok=True,
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
