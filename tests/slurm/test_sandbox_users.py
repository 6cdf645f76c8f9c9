"""Sandboxes on a shared machine: each user can have one and cannot use another user's."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from other_users import User, python_for_all, temporary_user
from waiting import wait_until

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.root]


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="users-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def user(open_folder: Path) -> Iterator[User]:
    """An unprivileged user."""
    with temporary_user(f"qpu{os.getpid()}", open_folder) as new_user:
        yield new_user


@pytest.fixture(scope="module")
def python(user: User, open_folder: Path) -> tuple[str, ...]:
    """A Python with this project's packages that the user may run."""
    return python_for_all(user, open_folder)


@pytest.fixture
def leaked_conf(sandbox: Sandbox, user: User) -> Iterator[Path]:
    """A copy of the sandbox's slurm.conf that the other user can read; it need not be secret."""
    etc = user.home / "leaked"
    shutil.copytree(sandbox.directory / "etc", etc, ignore=shutil.ignore_patterns("munge.key"))
    conf = etc / "slurm.conf"
    conf.write_text(conf.read_text().replace(f"{sandbox.directory}/etc", str(etc)))
    for path in (etc, *etc.iterdir()):
        shutil.chown(path, user.name)
    yield conf
    shutil.rmtree(etc)


@pytest.mark.timeout(300)
def test_an_unprivileged_user_can_have_a_sandbox(user: User, python: tuple[str, ...]) -> None:
    """Start it, run a job with a QPU, restart a killed daemon, stop it without a trace."""
    folder = user.home / "site"
    sandbox = (*python, "-m", "qrmi_workflows", "sandbox")
    where = ("--dir", str(folder))
    done = user.run(*sandbox, "up", *where)
    assert done.returncode == 0, done.stderr
    try:
        script = "srun sinfo --noheader --format=%D; id -un; echo $QPU_CONFIG"
        batch = ("sbatch", "--wait", "--export=NONE", "--gres=qpu:FRESNEL:1", "--output=out")
        done = user.run(*sandbox, "shell", *where, "--", *batch, f"--wrap={script}")
        assert done.returncode == 0, done.stderr
        output = (user.home / "out").read_text().split()
        assert output == ["2", user.name, f"{folder}/emulator/qrmi_config.json"]

        status = json.loads(user.run(*sandbox, "status", *where, "--json").stdout)
        pids = {daemon["name"]: daemon["pid"] for daemon in status["daemons"]}
        assert len(pids) == 5
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in pids.values()}
        assert owners == {user.home.stat().st_uid}
        assert user.run("kill", "-KILL", str(pids["slurmctld"])).returncode == 0
        wait_until(lambda: user.run(*sandbox, "status", *where).returncode == 1, "slurmctld to end")
        done = user.run(*sandbox, "up", *where)
        assert "slurmctld restarted" in done.stdout, done.stderr
    finally:
        done = user.run(*sandbox, "down", *where)
    assert done.returncode == 0, done.stderr
    processes = psutil.process_iter(["username", "status", "cmdline"])
    remaining = [process.info for process in processes if process.info["username"] == user.name]
    assert [info for info in remaining if info["status"] != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("argv", [("sinfo",), ("squeue",), ("sbatch", "--wrap=true")])
def test_another_user_is_denied(user: User, leaked_conf: Path, argv: tuple[str, ...]) -> None:
    """Even with a copy of slurm.conf, the user cannot reach munged's socket."""
    done = user.run(*argv, SLURM_CONF=str(leaked_conf))
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Failed to access" in done.stderr
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("argv", [("sinfo",), ("sbatch", "--wrap=true")])
def test_another_user_with_a_private_munged_is_denied(
    sandbox: Sandbox, user: User, leaked_conf: Path, argv: tuple[str, ...]
) -> None:
    """slurmctld rejects a credential that was made with another key."""
    log = sandbox.directory / "log" / "slurmctld.log"
    previous_size = len(log.read_text())
    socket = user.home / "munge.socket"
    key = user.home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    shutil.chown(key, user.name)
    conf = leaked_conf.read_text().splitlines()
    conf = [f"AuthInfo=socket={socket}" if "AuthInfo" in line else line for line in conf]
    leaked_conf.write_text("\n".join(conf) + "\n")
    files = [f"--{name}-file={user.home}/munged.{name}" for name in ("pid", "log", "seed")]
    done = user.run(
        "/usr/sbin/munged", "--force", f"--key-file={key}", f"--socket={socket}", *files
    )
    assert done.returncode == 0, done.stderr
    try:
        done = user.run(*argv, SLURM_CONF=str(leaked_conf))
        assert done.returncode != 0
        assert done.stdout == ""
        assert "Invalid credential" in log.read_text()[previous_size:]
    finally:
        user.run("/usr/sbin/munged", "--stop", f"--socket={socket}")


def test_another_user_cannot_read_the_state_directory(sandbox: Sandbox, user: User) -> None:
    """In particular not the credentials and the key."""
    for path in ("sandbox.json", "etc/munge.key", "etc/slurm.conf", "emulator/qrmi_config.json"):
        assert (sandbox.directory / path).exists()
        assert user.run("cat", str(sandbox.directory / path)).returncode != 0


def test_another_users_sandbox_is_not_taken_over(
    sandbox: Sandbox, user: User, python: tuple[str, ...]
) -> None:
    """`up`, `status` and `down` fail with a message, not a traceback."""
    for verb in ("up", "status", "down"):
        where = ("--dir", str(sandbox.directory))
        done = user.run(*python, "-m", "qrmi_workflows", "sandbox", verb, *where)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    assert sandbox.status().state == "up"


def test_root_does_not_take_over_a_users_sandbox(user: User, tmp_path: Path) -> None:
    """Root could read its files, but its daemons belong to the user."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sandbox.json").write_text("{}")
    shutil.chown(folder / "sandbox.json", user.name)
    with pytest.raises(SandboxError, match=r"belongs to user \d+; only that user may use it"):
        Sandbox(folder).up()
    assert [path.name for path in folder.iterdir()] == ["sandbox.json"]
