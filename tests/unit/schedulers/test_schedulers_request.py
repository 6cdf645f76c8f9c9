"""A request is compiled in one place, which checks who may use the QPU and how much of it."""

from __future__ import annotations

import ast
import grp
import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest
from test_imports import MODULES

from qrmi_workflows.config.site import QPUPolicy, SitePolicy, load_site_policy
from qrmi_workflows.errors import RequestError, UnknownQPUError
from qrmi_workflows.schedulers import slurm
from qrmi_workflows.schedulers.access import group_names, require_user
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.schedulers.slurm import Slurm

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name
FEZ = QPUPolicy(name="ibm_fez", licence="qpu_ibm_fez", partition="quantum")
OPTIONS = ["--partition=quantum", "--licenses=qpu_ibm_fez:1"]


def site_with(**settings: object) -> SitePolicy:
    """A site with one QPU."""
    policy = replace(FEZ, **settings)  # type: ignore[arg-type]
    return SitePolicy(path=Path("site.toml"), qpus={"ibm_fez": policy})


def compiled(site: SitePolicy, count: int = 1, **given: str) -> list[str]:
    """Compile a request for the QPU."""
    return compile_request(QPURequest(qpu="ibm_fez", count=count), site, Slurm(), **given)


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's default account is `chem`."""
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)
    monkeypatch.setattr(slurm, "_default_account", lambda user: "chem")


def test_without_limits_everybody_may_use_a_qpu():
    assert compiled(site_with()) == OPTIONS


@pytest.mark.parametrize(
    "limits",
    [
        {"users": ("ada", ME)},
        {"groups": (MY_GROUP,)},
        {"users": ("ada",), "groups": (MY_GROUP,)},
        {"accounts": ("physics", "Chem")},
        {"users": (ME,), "accounts": ("chem",)},
    ],
)
def test_who_meets_the_limits_may_use_a_qpu(limits):
    assert compiled(site_with(**limits)) == OPTIONS


def test_a_user_who_is_not_listed_is_refused_with_the_line(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[qpus.ibm_fez]\npartition = "q"\nusers = ["ada"]\ngroups = ["no-such"]\n')

    with pytest.raises(RequestError) as caught:
        compiled(load_site_policy(path))

    assert str(caught.value) == (
        f"QPU 'ibm_fez': user {ME!r} may not use it; must be one of: ada, members of no-such. Ask "
        f"your administrators for access ({path}:3)."
    )


def test_a_job_of_another_account_is_refused(monkeypatch):
    site = site_with(accounts=("physics",))

    assert compiled(site, account="physics") == OPTIONS
    with pytest.raises(RequestError, match="account 'chem' may not use it; must be one of: phys"):
        compiled(site)
    with pytest.raises(RequestError, match="account 'bio' may not use it"):
        compiled(site, account="bio")
    monkeypatch.setenv("SBATCH_ACCOUNT", "physics")
    assert compiled(site) == OPTIONS


def test_if_no_account_is_known_the_scheduler_decides(monkeypatch):
    monkeypatch.setattr(slurm, "_default_account", lambda user: None)

    assert compiled(site_with(accounts=("physics",))) == OPTIONS


def test_the_default_account_is_asked_of_the_accounting(commands, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{commands.folder}{os.pathsep}{os.environ['PATH']}")
    slurm._default_account.cache_clear()
    commands.write("sacctmgr", "echo bio")

    assert [Slurm().default_account() for _ in range(2)] == ["bio", "bio"]
    assert commands.calls("sacctmgr") == [
        f"--noheader --parsable2 show user name={ME} format=DefaultAccount"
    ]
    commands.write(
        "sacctmgr", "echo 'not running a supported accounting_storage plugin' >&2; exit 1"
    )
    slurm._default_account.cache_clear()
    assert Slurm().default_account() is None
    slurm._default_account.cache_clear()


def test_limits_cannot_be_evaded_by_another_partition():
    limited = site_with(users=(ME,), partition=None, partitions=("quantum", "debug"))

    assert compiled(limited, partition="debug")[0] == "--partition=quantum,debug"
    with pytest.raises(RequestError, match="partition 'main' does not grant it; must be one of: q"):
        compiled(limited, partition="main")
    with pytest.raises(RequestError, match="partition 'debug,main' does not grant it"):
        compiled(limited, partition="debug,main")
    assert compiled(site_with(), partition="main") == OPTIONS


def test_a_qpu_that_is_held_whole_has_one_unit():
    whole = site_with(lanes=5, exclusive=True)

    assert compiled(whole) == OPTIONS
    with pytest.raises(RequestError, match=r"one job holds the whole QPU.* Ask for qpu=1"):
        compiled(whole, count=2)


def test_of_a_shared_qpu_no_more_units_than_lanes_are_granted():
    shared = site_with(lanes=3, exclusive=False)

    assert compiled(shared, count=3)[-1] == "--licenses=qpu_ibm_fez:3"
    with pytest.raises(RequestError, match=r"it has 3 lanes\. Ask for qpu=3 or fewer"):
        compiled(shared, count=4)


def test_a_qpu_that_is_not_offered_is_refused():
    with pytest.raises(UnknownQPUError):
        compile_request(QPURequest(qpu="ibm_torino"), site_with(), Slurm())


def test_a_user_without_an_entry_in_the_user_database_is_known_by_number(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)

    assert MY_GROUP in group_names("4000000")
    with pytest.raises(RequestError, match="user '4000000' may not use it"):
        require_user("ibm_fez", site_with(users=("ada",)))


def test_nobody_bypasses_the_one_way_to_the_options():
    """The engines, the stages and the commands all compile their requests there."""
    callers = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) == "qpu_options"
    }

    assert callers == {
        "qrmi_workflows.schedulers.request",
        "qrmi_workflows.schedulers.slurm",  # the method, which calls the pure function
    }
