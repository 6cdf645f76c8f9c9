"""Reaping with the rights of each user: none of them can be in the way of the others."""

import json
import os
import pwd
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from qrmi_workflows.budgets.book import Book, Reservation, Spent
from qrmi_workflows.budgets.ledger import Ledger
from qrmi_workflows.config.variables import QPU_STATE
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.lease.stage import Stage, find_stage
from qrmi_workflows.site import user_reap
from qrmi_workflows.site.user_reap import UserReaper, UserState, may_need_reaping
from qrmi_workflows.state.process import Owner

SITE = '[qpus.ibm_fez]\nlicence = "qpu_ibm_fez"\n'
ME = pwd.getpwuid(os.getuid())


@pytest.fixture
def users(tmp_path, monkeypatch):
    """The first one's process reads a lease that never comes; the second one's job may be live."""
    monkeypatch.setattr(user_reap, "_USER_SECONDS", 2.5)
    cluster = SimpleNamespace(this_cluster=lambda: "alpha")
    monkeypatch.setattr(user_reap, "this_scheduler", lambda: cluster)
    states = [UserState(user=ME, folder=tmp_path / name) for name in ("silent", "honest")]
    for state in states:
        (state.folder / "leases" / "open").mkdir(parents=True)
    os.mkfifo(states[0].folder / "leases" / "open" / "a.json")
    opened = OpenLease(
        path=states[1].folder / "leases" / "open" / "b.json",
        lease="b",
        qpu="ibm_fez",
        type="ibm-quantum-system",
        step="",
        owner=Owner(host="elsewhere", boot="b", pid=1, started=1, job="500000"),
        acquired=1.0,
        acquire=0.0,
        config=None,
        token="",
        adopted=True,
    )
    opened.path.write_text(json.dumps(asdict(opened) | {"path": None}))
    monkeypatch.setenv(QPU_STATE, str(tmp_path / "own"))
    return states


def test_a_user_whose_process_is_silent_is_not_at_the_expense_of_another(users):
    live = {str(number) for number in range(100_000)}  # more than a pipe holds
    with UserReaper(users) as reaper:
        assert reaper.waits
        reaper.answer(live)
        (_, silent), (_, honest) = reaper.outcomes()

    assert "did not end in time" in silent.error
    assert (honest.lease, honest.released) == ("b", True)
    assert not list(users[1].folder.glob("leases/open/*.json"))


@pytest.mark.parametrize("live", [None, {"500000"}])
def test_a_lease_is_left_alone_if_its_job_is_live_or_nobody_knows(users, live):
    with UserReaper(users[1:]) as reaper:
        reaper.answer(live)
        assert list(reaper.outcomes()) == []

    assert list(users[1].folder.glob("leases/open/*.json"))


DEAD = Owner.this_process(None)
DEAD = replace(DEAD, pid=2**22 + 1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The state folder of a user."""
    monkeypatch.setattr(user_reap, "_import_all", lambda: None)
    (tmp_path / "site.toml").write_text(SITE)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv(QPU_STATE, str(tmp_path / "home"))
    return UserState(user=ME, folder=tmp_path / "home")


def reap_home(home):
    """Reap as the user, and return what root is told of the stages."""
    with UserReaper([home]) as reaper:
        reaper.answer(set())
        assert list(reaper.outcomes()) == []
        return list(reaper.ended_stages())


@pytest.mark.parametrize("state", ["NODE_FAIL", "RUNNING"])
def test_no_job_waits_for_a_stage_whose_keeper_has_died(home, commands, state):
    waits = "afterok:1(unfulfilled)"
    rows = [("1", state, "(null)"), ("5", "PENDING", waits)]
    lines = ["\x1f".join([j, j, s, "0", "None", "c", "n", d, "\n"]) for j, s, d in rows]
    (commands.folder / "queue").write_text("".join(lines))
    commands.write("squeue", f"cat {commands.folder}/queue")
    for name in ("scancel", "scontrol", "sacct"):
        commands.write(name, "true")
    stage = Stage(name="vqe", qpu="ibm_fez", type="ibm-quantum-system", keeper_job="1")
    stage.folder.create()
    with stage.folder.locked():
        stage.save()

    assert may_need_reaping(home)
    said = reap_home(home)

    is_dead = state != "RUNNING"
    assert find_stage("vqe").is_ended is is_dead
    assert commands.calls("scancel") == ["5"] * is_dead
    reason = "stage 'vqe' has ended: its keeper's job 1 ended: NODE_FAIL"
    assert said == [(ME.pw_name, reason)] * is_dead


@pytest.mark.parametrize("is_sites", [True, False])
@pytest.mark.parametrize("owner", [DEAD, Owner.this_process(None)], ids=["dead", "alive"])
def test_what_a_dead_process_has_reserved_is_settled(home, tmp_path, is_sites, owner):
    folder = tmp_path / "budgets" if is_sites else home.folder / "budgets"
    if is_sites:
        (tmp_path / "site.toml").write_text(f'[site]\nbudgets = "{folder}"\n{SITE}')
    ledger = Ledger(folder)
    ledger.prepare(for_all=is_sites)
    (folder / "limits.toml").write_text("")
    record = home.folder / "journal" / "open" / "ab" / "step" / "record.json"
    record.parents[3].mkdir(parents=True)
    reserved = Reservation(
        day="2026-01-01", qpu="ibm_fez", amount=Spent(shots=5), record=str(record), owner=owner
    )
    books = ledger.user(ME.pw_name)
    with books.locked():
        books.write(None, Book(open={"r": reserved}))

    budgets = folder if is_sites else None
    assert may_need_reaping(home, budgets)
    assert reap_home(home) == []

    assert set(books.read(None).open) == (set() if owner is DEAD else {"r"})
    assert may_need_reaping(home, budgets) is (owner is not DEAD)
