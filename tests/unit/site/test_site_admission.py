"""Admission by state: the decisions, the notices, and what is done at the scheduler."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from dataclasses import replace

import pytest

from qrmi_workflows.choice.availability import availability
from qrmi_workflows.client.states import Answer, ask_all
from qrmi_workflows.config.notices import read_notice, read_notices
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError, SchedulerError
from qrmi_workflows.schedulers.admission import AdmissionPlan, Capacity, Change
from qrmi_workflows.site import notice_board
from qrmi_workflows.site import reconcile as reconcile_module
from qrmi_workflows.site.admission import apply, judge
from qrmi_workflows.site.maintenance import end_maintenance, start_maintenance
from qrmi_workflows.site.notice_board import NoticeBoard, Seen
from qrmi_workflows.site.reconcile import follow

ONLINE = Answer(state="online", is_operational=True)
OFFLINE = Answer(state="offline", is_operational=False)


@pytest.fixture
def site(tmp_path):
    text = f'scheduler = "slurm"\n[site]\nstate = "{tmp_path}/state"\n[qpus.a]\n[qpus.b]\n'
    (tmp_path / "site.toml").write_text(text)
    return load_site_policy(tmp_path / "site.toml")


class Scheduler:
    """A scheduler that keeps the jobs of the QPUs in `closed` pending."""

    def __init__(self, folder, works=True):
        self.asked, self.works, self.folder = [], works, folder

    def plan(self, away, site, marks=(), *, timeout=0):
        self.asked.append((set(away), set(marks)))
        changes = [
            Change(qpu=name, argv=("true" if self.works else "false",), text=f"close {name}")
            for name in away
        ]
        return AdmissionPlan(changes=tuple(changes), marks=frozenset(away))


def judged(answer, before, now=1000.0):
    return judge(answer, before, now=now, patience=900)


def test_a_qpu_is_away_while_its_vendor_says_so():
    away = judged(OFFLINE, None)
    still = judged(Answer(state="paused", is_operational=False, reason="cooling"), away, 1100.0)

    assert away == Seen(answered=1000.0, away="the vendor reports that it is offline", since=1000.0)
    assert still.away == "the vendor reports that it is paused (cooling)"
    assert still.since == 1000.0
    assert judged(ONLINE, still, 1200.0) == Seen(answered=1200.0)


def test_a_silent_vendors_qpu_keeps_its_state_for_a_while():
    open_, away = judged(ONLINE, None), judged(OFFLINE, None)

    assert judged(None, open_, 1899.0) == replace(open_, is_silent=True)
    assert judged(None, away, 9999.0) == replace(away, is_silent=True)
    silent = judged(None, open_, 1900.0)
    assert (silent.away, silent.since) == ("the vendor has not answered for 900 s", 1900.0)
    assert judged(None, silent, 5000.0) == silent
    assert judged(ONLINE, silent, 5000.0).away is None


def test_a_vendor_that_was_silent_from_the_first_has_a_while_too():
    first = judged(None, None)
    assert judged(None, first, 1500.0).away is None
    assert judged(None, first, 1900.0).away is not None


@pytest.mark.parametrize(
    ("answer", "capacity", "expected"),
    [
        (ONLINE, Capacity(free=1, total=5), (True, 1, 5, True, "")),
        (ONLINE, Capacity(free=0, total=5), (True, 0, 5, False, "jobs hold it")),
        (ONLINE, None, (True, None, None, True, "")),
        (OFFLINE, Capacity(free=5, total=5), (False, 5, 5, False, "it is offline")),
        (None, Capacity(free=5, total=5), (None, 5, 5, None, "the vendor does not answer")),
        (
            Answer(state="online", is_operational=True, is_full=True),
            Capacity(free=1, total=1),
            (True, 1, 1, False, "the vendor takes no more tasks now"),
        ),
    ],
)
def test_three_answers_are_kept_apart(answer, capacity, expected):
    found = availability(answer, None, capacity)
    told = (found.operational, found.free, found.units, found.available, found.reason)
    assert told == expected


def test_a_qpu_in_maintenance_is_operational_and_not_available(site):
    board = NoticeBoard(site)
    with board.changed():
        board.post({"a": "Cooling"}, since=1795710224.0)

    found = availability(ONLINE, read_notice("a", site), Capacity(free=1, total=1))

    assert (found.operational, found.free, found.available) == (True, 1, False)
    assert found.reason == "in maintenance since 2026-11-26 16:23 UTC: Cooling"


def test_notices_are_for_everybody_and_what_is_known_for_root(site):
    before = os.umask(0o077)
    try:
        board = NoticeBoard(site)
        with board.changed() as known:
            board.post({"a": "Cooling"})
            board.save(known)
    finally:
        os.umask(before)

    state = site.folders.state
    modes = {
        str(path.relative_to(state)): stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*")
    }
    assert modes["maintenance/by-hand.json"] == 0o644
    assert modes["maintenance"] == 0o755
    assert modes["admission"] == 0o700
    assert modes["admission/known.json"] == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o711


def test_nobody_else_may_change_them(site, monkeypatch):
    monkeypatch.setattr(notice_board, "operators", lambda _site: frozenset({os.geteuid() + 1}))
    with pytest.raises(ConfigError, match="may not do this; must be"):
        NoticeBoard(site)


def test_a_folder_that_others_may_write_to_is_refused(site):
    site.folders.maintenance.mkdir(parents=True)
    site.folders.maintenance.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else may write to"), NoticeBoard(site).changed():
        pass


def test_a_stuck_command_is_not_waited_for_for_ever(site, monkeypatch):
    monkeypatch.setattr(notice_board, "_LOCK_SECONDS", 0.1)
    board = NoticeBoard(site)
    with board.changed(), pytest.raises(SchedulerError, match="another `qpu site` command"):
        board.changed().__enter__()


def known_file(site):
    with NoticeBoard(site).changed():
        return site.folders.state / "admission/known.json"


def test_what_only_another_release_knows_is_left_out(site):
    seen = {"a": {"answered": 5.0, "away": "x", "mood": "good"}, "b": {"later": 1}, "c": 7}
    known_file(site).write_text(json.dumps({"seen": seen, "marks": ["p"], "version": 9}))

    with NoticeBoard(site).changed() as known:
        assert known.seen == {"a": Seen(answered=5.0, away="x")}
        assert known.marks == frozenset({"p"})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"seen": [], "marks": []}', '{"seen": {}, "marks": 5}',
     '{"seen": {}, "marks": [[]]}', "[" * 100000, "\udcff"],
)  # fmt: skip
def test_a_damaged_memory_is_named_with_what_to_do(site, text):
    """It may know of partitions that have to be opened again, so it is not just forgotten."""
    path = known_file(site)
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(ConfigError, match=r"known\.json: .*Remove it. If the partition"):
        NoticeBoard(site).changed().__enter__()
    path.unlink()
    with NoticeBoard(site).changed() as known:
        assert known.seen == {}


def test_damaged_notices_open_no_qpu(site, tmp_path):
    board, scheduler = NoticeBoard(site), Scheduler(tmp_path)
    with board.changed():
        board.post({"a": "Cooling"})
    (site.folders.maintenance / "by-hand.json").write_text('{"a": {"message": "Cool')

    with pytest.raises(ConfigError, match=r"by-hand\.json: not a JSON object"):
        run(site, scheduler, {"a": ONLINE})
    assert scheduler.asked == []


@pytest.mark.parametrize("since", ["1e30", '"x"', "[1]"])
def test_a_new_message_mends_an_absurd_time(site, since):
    with NoticeBoard(site).changed():
        path = site.folders.maintenance / "by-hand.json"
    path.write_text(f'{{"a": {{"message": "Cooling", "since": {since}}}}}')

    board = NoticeBoard(site)
    with board.changed():
        board.post({"a": "Still cooling"})

    assert abs(read_notice("a", site).since - time.time()) < 60


def test_a_damaged_notice_from_the_vendors_is_replaced(site, tmp_path):
    with NoticeBoard(site).changed():
        (site.folders.maintenance / "by-state.json").write_bytes(b"\xff")
    assert set(run(site, Scheduler(tmp_path), {"a": OFFLINE}).notices) == {"a"}


def run(site, scheduler, answers, now=1000.0):
    board = NoticeBoard(site)
    with board.changed() as known:
        follow(board, known, site, answers, patience=900, now=now)
        return apply(board, known, site, scheduler)


def test_the_vendors_answers_are_followed(site, tmp_path):
    scheduler = Scheduler(tmp_path)

    away = run(site, scheduler, {"a": OFFLINE, "b": ONLINE})
    back = run(site, scheduler, {"a": ONLINE, "b": "no answer"}, now=1060.0)

    assert [each.qpu for each in away.notices.values()] == ["a"]
    assert away.changes == ("close a",)
    assert dict(back.notices) == {}
    assert scheduler.asked == [({"a"}, set()), (set(), {"a"})]


def test_what_was_set_by_hand_stays(site, tmp_path):
    board = NoticeBoard(site)
    with board.changed():
        board.post({"a": "Cooling"})

    run(site, Scheduler(tmp_path), {"a": OFFLINE})
    applied = run(site, Scheduler(tmp_path), {"a": ONLINE})

    assert applied.notices["a"].message == "Cooling"


def test_a_qpu_that_was_not_asked_keeps_its_state(site, tmp_path):
    run(site, Scheduler(tmp_path), {"a": OFFLINE, "b": OFFLINE})
    run(site, Scheduler(tmp_path), {"b": ONLINE}, now=99999.0)

    assert set(read_notices(site)) == {"a"}


def test_a_change_that_fails_is_named_and_its_mark_kept(site, tmp_path):
    scheduler = Scheduler(tmp_path, works=False)

    applied = run(site, scheduler, {"a": OFFLINE})
    run(site, scheduler, {"a": ONLINE})

    assert applied.errors["a"].startswith("cannot close a: `false` failed with exit status 1")
    assert scheduler.asked[1] == (set(), {"a"})


def test_answers_are_kept_while_the_scheduler_is_silent(site):
    class Silent:
        def plan(self, *_args, **_options):
            raise SchedulerError("no answer", retryable=True)

    with pytest.raises(SchedulerError):
        run(site, Silent(), {"a": OFFLINE})
    with NoticeBoard(site).changed() as known:
        assert known.seen["a"].away is not None
    assert set(read_notices(site)) == {"a"}


def test_marks_are_kept_before_anything_is_changed(site, tmp_path):
    board = NoticeBoard(site)

    class Killed(Scheduler):
        def plan(self, away, site, marks=(), *, timeout=0):
            plan = super().plan(away, site, marks)
            script = f"cp {site.folders.state}/admission/known.json {tmp_path}/then.json"
            change = Change(qpu="a", argv=("sh", "-c", script), text="look")
            return AdmissionPlan(changes=(change,), marks=plan.marks)

    run(site, Killed(tmp_path), {"a": OFFLINE})
    assert json.loads((tmp_path / "then.json").read_text())["marks"] == ["a"]

    # And what is to be opened again is forgotten only after it has been.
    run(site, Killed(tmp_path), {"a": ONLINE})
    assert json.loads((tmp_path / "then.json").read_text())["marks"] == ["a"]
    with board.changed() as known:
        assert known.marks == frozenset()


def test_a_scheduler_that_cannot_keep_jobs_pending_is_named(site):
    assert run(site, None, {"a": OFFLINE}).unsupported == {
        "a": "this scheduler cannot keep its jobs pending"
    }


def test_maintenance_by_hand(site, commands):
    commands.write("scontrol", "")

    on = start_maintenance(["a", "b"], "Cooling", site)
    again = start_maintenance(["a"], "Cooling until Friday", site)
    off = end_maintenance(["a", "b"], site)

    assert [each.message for each in on.notices.values()] == ["Cooling", "Cooling"]
    assert again.notices["a"].message == "Cooling until Friday"
    assert again.notices["a"].since == on.notices["a"].since
    assert dict(off.notices) == {}


@pytest.mark.parametrize("message", ["two\nlines", "a\x1b[31m", "x" * 501])
def test_a_message_is_one_line(site, message):
    with pytest.raises(ConfigError, match="must be one line"):
        start_maintenance(["a"], message, site)


@pytest.mark.parametrize("name", ["c", "../a"])
def test_a_qpu_that_the_site_does_not_offer_is_refused_before_anything_is_written(site, name):
    with pytest.raises(ConfigError, match="unknown QPU"):
        start_maintenance(["a", name], "Cooling", site)
    assert not site.folders.state.exists()


def test_the_oldest_answers_are_renewed_first_and_silent_vendors_wait(tmp_path):
    names = ("silent", "fresh", "never", "stale", "undefined")
    tables = "".join(f"[qpus.{name}]\n" for name in names)
    (tmp_path / "site.toml").write_text(tables)
    entries = [{"name": name, "type": "x", "environment": {}} for name in names[:-1]]
    (tmp_path / "qrmi.json").write_text(json.dumps({"resources": entries}))
    seen = {
        "silent": Seen(answered=1.0, is_silent=True),
        "stale": Seen(answered=2.0),
        "fresh": Seen(answered=3.0),
    }

    found = reconcile_module._definitions(
        load_site_policy(tmp_path / "site.toml"), tmp_path / "qrmi.json", seen
    )

    assert list(found) == ["never", "stale", "fresh", "silent"]


DEFINITIONS = {
    name: QPUDefinition(name=name, type="x", environment={}) for name in ("quick", "slow", "bad")
}

# Seconds in which the threads have started: a loaded machine may need another try, with more.
ENOUGH = (0.3, 3.0, 15.0)


def test_vendors_are_asked_in_parallel_and_bounded():
    release = threading.Event()

    def ask(definition):
        if definition.name == "slow":
            release.wait(60)
        if definition.name == "bad":
            raise QPUError("refused")
        return ONLINE

    expected = {"quick": ONLINE, "slow": "no answer within 0.2 s", "bad": "refused"}
    for in_all in ENOUGH:
        start = time.monotonic()
        found = ask_all(DEFINITIONS, seconds=0.2, in_all=in_all, ask=ask)
        assert time.monotonic() - start < 30
        if found == expected:
            break
    release.set()

    assert found == expected


def test_vendors_that_were_not_asked_in_time_are_not_called_silent():
    many = {f"q{n}": DEFINITIONS["quick"] for n in range(100)}
    release = threading.Event()

    def ask(_definition):
        release.wait(60)
        return ONLINE

    expected = {f"q{n}" for n in range(32)}
    for in_all in ENOUGH:
        found = ask_all(many, seconds=0.2, in_all=in_all, ask=ask)
        if set(found) == expected:
            break
    release.set()

    assert set(found) == expected
