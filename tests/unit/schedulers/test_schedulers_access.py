"""Access to a QPU, as another user of this machine."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_users import User, python_for_all, temporary_user

pytestmark = pytest.mark.root

QPU = '[qpus.{name}]\nlicence = "qpu_{{qpu}}"\npartition = "q"\n{limits}\n'


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="access-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def user(folder: Path) -> Iterator[User]:
    """A user who is also in a group of another name."""
    with temporary_user("qpu-access", folder) as user:
        subprocess.run(["groupadd", "qpu-team"], check=True)
        subprocess.run(["usermod", "-aG", "qpu-team", user.name], check=True)
        yield user
        subprocess.run(["groupdel", "qpu-team"], check=True)


def test_a_user_may_use_what_the_policy_grants_to_them_or_a_group_of_theirs(user, folder):
    limits = {
        "open": "",
        "named": f'users = ["root", "{user.name}"]',
        "team": 'groups = ["qpu-team"]',
        "own": f'groups = ["{user.name}"]',
        "roots": 'users = ["root"]\ngroups = ["root"]',
    }
    tables = (QPU.format(name=name, limits=each) for name, each in limits.items())
    policy = folder / "site.toml"
    policy.write_text("\n".join(tables))
    policy.chmod(0o644)
    python = python_for_all(user, folder)

    done = {
        name: user.run(*python, "-m", "qrmi_workflows", "request", name, QPU_SITE=str(policy))
        for name in limits
    }

    codes = {name: each.returncode for name, each in done.items()}
    assert codes == {"open": 0, "named": 0, "team": 0, "own": 0, "roots": 2}
    assert done["team"].stdout == "--partition=q --licenses=qpu_team:1\n"
    assert done["roots"].stdout == ""
    assert f"user {user.name!r} may not use it; must be one of: root, members of root." in (
        done["roots"].stderr
    )
