"""Stages of several jobs: one lease for all members, whatever happens to it or to its keeper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fault_payloads import bell
from servers import servers, to_toml
from stage_runs import MEMBER, Keeping, Vendor
from waiting import suspend, wait_until

from qrmi_workflows import find_stage, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import BudgetError, LeaseError, RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.lease.stage import Published, update_stage
from qrmi_workflows.stages.jobs import NoJobs
from qrmi_workflows.stages.keeper import keep
from qrmi_workflows.tasks.usage import read_usage

TYPE = "ibm-quantum-compute-service"
SERVERS = {"-".join(server) or "default": server for server in servers(TYPE)}
QPU = """
[qpus.{name}]
type = "{type}"
simulator = "null"
execution_seconds = 0.05
lanes = 2
server = {server}
"""
every_server = pytest.mark.parametrize(
    "vendor",
    [pytest.param(name, marks=() if name == "default" else pytest.mark.slow) for name in SERVERS],
    indirect=True,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "emulator.toml").write_text(
        "".join(
            QPU.format(name=name, type=TYPE, server=to_toml(server))
            for name, server in SERVERS.items()
        )
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def vendor(
    request: pytest.FixtureRequest,
    running: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Vendor]:
    """A server as the vendor documents it, or of each kind, for a user with an empty state."""
    monkeypatch.setenv("QPU_CONFIG", str(running.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", os.devnull)
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    vendor = Vendor(running, getattr(request, "param", "default"))
    yield vendor
    vendor.repair()
    vendor.fault("close-sessions")  # one that a test has left would hold the QPU
    vendor.hold_tasks(hold=False)


@pytest.fixture
def keeping(vendor: Vendor) -> Iterator[Keeping]:
    """The stage `vqe`, with a keeper if the test starts one; all processes end with the test."""
    with Keeping(vendor) as keeping:
        yield keeping


def test_all_members_share_one_session_that_ends_when_the_stage_is_closed(vendor, keeping):
    keeping.start_keeper()
    members = [keeping.start_member(f"s{n}", tasks=3) for n in range(2)]

    for member in members:
        assert keeping.outcome(member) == (0, 3)
    keeping.close()

    assert keeping.wait_for_keeper() == 0
    assert find_stage("vqe").reason == "closed"
    keeping.require_paid_once(tasks=6, sessions=1)


def test_a_command_under_the_lease_joins_too(vendor, keeping):
    keeping.start_keeper()
    command = [sys.executable, "-c", MEMBER, "", "s", "1"]
    argv = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--stage", "vqe", "--"]

    ended = subprocess.run([*argv, *command], capture_output=True, text=True, timeout=60)

    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    assert vendor.count("sessions", "opened") == 1


def test_all_members_share_the_budget_of_the_stage(vendor, keeping):
    update_stage("vqe", lambda now: replace(now, budget="250 shots"))
    keeping.start_keeper()
    with open_lease(stage="vqe", step="a") as a, open_lease(stage="vqe", step="b") as b:
        a.run(bell(100))
        b.run(bell(101))
        with pytest.raises(BudgetError, match="49 shots are left"):
            a.run(bell(102))
    shown = [sys.executable, "-m", "qrmi_workflows", "budget", "show", "--json"]
    (usage,) = json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)
    assert (usage["scope"], usage["spent"], usage["left"]) == ("stage", 201, 49)

    keeping.close()
    keeping.wait_for_keeper()
    keeping.require_paid_once(tasks=2, sessions=1)


@every_server
def test_one_renewal_for_all_members_after_the_vendor_has_closed_the_session(vendor, keeping):
    keeping.start_keeper()
    with open_lease(stage="vqe", step="a") as a, open_lease(stage="vqe", step="b") as b:
        a.run(bell(1))
        vendor.fault("close-sessions")
        futures = [lease.submit(bell(n)) for lease in (a, b) for n in range(2, 5)]
        assert len({future.result().task_id for future in futures}) == 6

    assert find_stage("vqe").generation == 2
    keeping.close()
    keeping.wait_for_keeper()
    keeping.require_paid_once(tasks=7, sessions=2)


def test_a_session_that_ended_is_not_renewed_before_its_tasks_have_ended(vendor, keeping):
    """The vendor refuses new tasks, and lets those that it has run to their end."""
    keeping.start_keeper()
    with open_lease(stage="vqe", step="a") as lease:
        vendor.hold_tasks()
        first = lease.submit(bell(1))
        wait_until(lambda: first.task_id, "the first task")
        refused = {"status": 400, "body": json.dumps({"errors": [{"code": 1217}]})}
        vendor.fault("status", route="POST */jobs", **refused)
        second = lease.submit(bell(2))
        wait_until(lambda: "tasks still run" in find_stage("vqe").reason, "the keeper's reason")
        vendor.repair()
        assert vendor.count("sessions", "opened") == 1
        vendor.hold_tasks(hold=False)
        assert first.result().task_id != second.result().task_id
    assert find_stage("vqe").generation == 2


def test_a_session_is_not_renewed_for_a_member_that_has_died(vendor, keeping):
    keeper = keeping.start_keeper()
    wishes = find_stage("vqe").folder.wishes
    suspend(psutil.Process(keeper.pid))
    vendor.fault("close-sessions")
    member = keeping.start_member("s")
    wait_until(lambda: list(wishes.iterdir()), "the wish for a session")
    member.kill()
    member.wait()

    keeper.send_signal(signal.SIGCONT)

    wait_until(lambda: not list(wishes.iterdir()), "the keeper to look at it")
    keeping.close()
    assert keeping.wait_for_keeper() == 0
    assert find_stage("vqe").generation == 1
    assert vendor.count("sessions", "opened") == 1


@every_server
def test_a_killed_keeper_is_replaced_and_nothing_is_paid_twice(vendor, keeping):
    keeping.start_keeper()
    vendor.hold_tasks()
    member = keeping.start_member("s", tasks=4)  # two of them in flight, two wait for a lane
    wait_until(lambda: vendor.count("tasks", "accepted") == 2, "two tasks")
    keeping.kill_keeper()

    keeping.start_keeper()
    wait_until(lambda: find_stage("vqe").generation == 2, "the second keeper")
    vendor.hold_tasks(hold=False)

    assert keeping.outcome(member) == (0, 4)
    keeping.close()
    assert keeping.wait_for_keeper() == 0
    keeping.require_paid_once(tasks=4, sessions=1)


def test_members_of_a_killed_keeper_say_so_and_fail_in_time_but_not_their_tasks(
    vendor, keeping, monkeypatch, caplog
):
    keeping.start_keeper()
    vendor.hold_tasks()
    with open_lease(stage="vqe", step="s") as lease:
        monkeypatch.setenv("QPU_STAGE_WAIT", "0.5")
        submitted = lease.submit(bell(1))
        wait_until(lambda: submitted.task_id, "the task")
        keeping.kill_keeper()
        with pytest.raises(LeaseError, match="its keeper has died") as error:
            lease.run(bell(2))
        assert error.value.retryable
        vendor.hold_tasks(hold=False)
        assert submitted.result().task_id
    assert caplog.text.count("its keeper has died") == 1

    monkeypatch.delenv("QPU_STAGE_WAIT")
    keeping.start_keeper()
    assert keeping.outcome(keeping.start_member("s", tasks=2)) == (0, 2)
    keeping.close()
    keeping.wait_for_keeper()
    keeping.require_paid_once(tasks=2, sessions=2)


@every_server
def test_a_keeper_that_is_stopped_leaves_the_tasks_of_its_members(vendor, keeping):
    """They wait for their tasks; what they submit afterwards is refused with the reason."""
    keeping.start_keeper()
    vendor.hold_tasks()
    member = keeping.start_member("s", tasks=4)
    wait_until(lambda: vendor.count("tasks", "accepted") == 2, "two tasks")
    keeping.keeper.terminate()
    assert keeping.wait_for_keeper() == 128 + signal.SIGTERM

    vendor.hold_tasks(hold=False)
    code, results = keeping.outcome(member)

    assert (code, results) == (1, 2)
    assert "stage 'vqe' has ended: its keeper was stopped" in keeping.errors
    assert list(open_leases()) == []  # the last member releases what the keeper has left
    assert vendor.count("sessions", "open") == 0
    assert vendor.count("tasks", "cancelled") == 0

    keeping.open()
    keeping.start_keeper()
    assert keeping.outcome(keeping.start_member("s", tasks=4)) == (0, 4)
    keeping.close()
    keeping.wait_for_keeper()
    keeping.require_paid_once(tasks=4, sessions=2)


def test_a_submission_that_is_under_way_keeps_the_lease_open(vendor, keeping):
    """Whoever finds the lease of a dead keeper does not close it under a member's submission."""
    keeping.start_keeper()
    vendor.fault("hold", route="POST */jobs", count=1)
    member = keeping.start_member("s", tasks=1)
    # A member that sees its keeper dead before the request goes out withdraws its intent.
    wait_until(vendor.matched, "the request")
    assert keeping.states("s") == ["intent"]
    keeping.kill_keeper()

    (kept,) = reap()
    assert not kept.released
    vendor.repair()
    assert keeping.outcome(member) == (0, 1)

    assert vendor.count("tasks", "cancelled") == 0
    assert [each.released for each in reap()] == [True]


def test_a_member_that_was_killed_is_forgotten_and_its_rerun_finds_the_task(vendor, keeping):
    keeping.start_keeper()
    vendor.hold_tasks()
    member = keeping.start_member("s", tasks=1)
    wait_until(lambda: keeping.states("s") == ["submitted"], "the task")
    member.kill()
    wait_until(lambda: not list(find_stage("vqe").folder.members.iterdir()), "the member's end")

    rerun = keeping.start_member("s", tasks=1)
    vendor.hold_tasks(hold=False)

    assert keeping.outcome(rerun) == (0, 1)
    assert find_stage("vqe").generation == 1
    keeping.close()
    keeping.wait_for_keeper()
    keeping.require_paid_once(tasks=1, sessions=1)


def test_the_children_of_a_killed_supervisor_leave_their_tasks(vendor, keeping):
    keeping.start_keeper()
    vendor.hold_tasks()
    command = [sys.executable, "-c", MEMBER, "", "s", "1"]
    argv = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--stage", "vqe", "--"]
    with subprocess.Popen([*argv, *command], stdout=subprocess.DEVNULL) as supervisor:
        wait_until(lambda: keeping.states("s") == ["submitted"], "the task")
        supervisor.kill()
    wait_until(lambda: not list(find_stage("vqe").folder.members.iterdir()), "the members' end")

    assert vendor.count("tasks", "cancelled") == 0
    assert keeping.states("s") == ["submitted"]


def test_a_member_with_one_task_is_not_overtaken_by_one_with_many(vendor, keeping):
    keeping.lanes = 1
    keeping.open()
    keeping.start_keeper()
    vendor.hold_tasks()
    many = keeping.start_member("many", tasks=10)
    wait_until(lambda: vendor.count("tasks", "accepted") == 1, "its first task")
    one = keeping.start_member("one", tasks=1)
    queue = find_stage("vqe").lanes_folder / "queue"
    wait_until(lambda: len(list(queue.glob("0*"))) == 1, "the other's turn to be next")
    vendor.hold_tasks(hold=False)
    assert keeping.outcome(one) == (0, 1)
    assert keeping.outcome(many) == (0, 10)

    published = Published.load(find_stage("vqe").folder)
    (record,) = Journal().step("one").records()
    _warm_up, *ended = [usage.task_id for usage in read_usage(published.usage)]
    assert ended.index(record.task_id) == 1


def test_an_idle_stage_ends(vendor, keeping):
    update_stage("vqe", lambda now: replace(now, idle_limit=0.3))
    keeping.start_keeper(wait=False)  # or it would end before its member joins
    with open_lease(stage="vqe", step="s") as lease:
        lease.run(bell(1))

    assert keeping.wait_for_keeper() == 0

    assert find_stage("vqe").reason.startswith("it had nothing to do for")
    with pytest.raises(LeaseError, match="has ended: it had nothing to do") as error:
        open_lease(stage="vqe")
    assert error.value.retryable
    keeping.require_paid_once(tasks=1, sessions=1)


class JobThatNobodyAnnounces(NoJobs):
    """A job that Slurm lists only at the third look; with its release, the stage is closed."""

    def __init__(self) -> None:
        self.looks = 0

    def release_waiting(self) -> None:
        self.looks += 1
        if self.looks == 3:
            update_stage("vqe", lambda now: replace(now, closing=True))


@pytest.mark.timeout(20, func_only=True)
def test_a_job_that_is_listed_late_is_released_soon(vendor, keeping):
    """An `sbatch` by hand may have taken its options shortly before the stage became ready."""
    keep("vqe", JobThatNobodyAnnounces())

    assert find_stage("vqe").reason == "closed"


class JobThatEndsWithItsMember(NoJobs):
    """The stage's last job, which Slurm is asked about only if there is a reason."""

    def __init__(self) -> None:
        self.may_have_ended = False

    def release_waiting(self) -> None:
        update_stage("vqe", lambda now: replace(now, closing=True))

    def are_left(self) -> bool:
        return not self.may_have_ended

    def expect_change(self) -> None:
        self.may_have_ended = True


@pytest.mark.timeout(20, func_only=True)
def test_the_last_job_of_a_closed_stage_is_seen_to_end_soon(vendor, keeping):
    member = keeping.start_member("s")
    joined = find_stage("vqe").folder.members
    wait_until(lambda: any(joined.glob("[!.]*")), "the member, before the stage closes")

    keep("vqe", JobThatEndsWithItsMember())

    assert keeping.outcome(member) == (0, 1)
    keeping.require_paid_once(tasks=1, sessions=1)


def test_a_stage_without_its_qpu_ends_with_the_vendors_reason(vendor, keeping):
    vendor.fault("status", route="POST */sessions*", status=403)

    keeping.start_keeper()

    assert keeping.wait_for_keeper() == 1
    assert "could not be acquired" in find_stage("vqe").reason
    with pytest.raises(LeaseError, match="could not be acquired"):
        open_lease(stage="vqe")


def test_one_keeper_at_a_time(vendor, keeping, monkeypatch):
    keeping.start_keeper()
    open_lease(stage="vqe").release()
    monkeypatch.setattr("qrmi_workflows.stages.keeper._BEFORE_SECONDS", 0.3)

    with pytest.raises(RequestError, match="has a keeper already"):
        keep("vqe", NoJobs())


def test_many_members_do_not_keep_a_keeper_busy(vendor, keeping, monkeypatch):
    """A network file system may take seconds to tell which of hundreds of members are alive."""
    looks = []

    def is_alive_slowly(_file: Path) -> bool:
        looks.append(time.monotonic())
        time.sleep(0.03)
        return len(looks) < 3

    monkeypatch.setattr("qrmi_workflows.stages.members.is_member_alive", is_alive_slowly)
    (find_stage("vqe").folder.members / "many").touch()
    keeping.close()

    keep("vqe", NoJobs())

    assert looks[1] - looks[0] > 0.5
    assert find_stage("vqe").reason == "closed"


def test_a_command_may_be_stopped_with_its_stage(vendor, keeping, tmp_path):
    keeping.start_keeper()
    open_lease(stage="vqe").release()  # which waits for the keeper
    argv = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--stage", "vqe"]
    said = ["sh", "-c", f"touch {tmp_path}/started; exec sleep 60"]
    with subprocess.Popen([*argv, "--stop-with-stage", "--", *said]) as supervisor:
        wait_until((tmp_path / "started").exists, "the command")
        keeping.keeper.terminate()
        assert supervisor.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_process_that_hangs_with_the_stages_lock_does_not_keep_the_lease_open(vendor, keeping):
    keeping.start_keeper()
    open_lease(stage="vqe").release()

    with find_stage("vqe").folder.locked():
        keeping.keeper.terminate()
        assert keeping.wait_for_keeper() == 143

    assert "another process holds its lock" in keeping.errors
    assert not find_stage("vqe").folder.environment.exists()
    keeping.require_paid_once(tasks=0, sessions=1)


def test_a_deleted_publication_is_written_again(vendor, keeping):
    """Or members would wait for as long as the keeper lives."""
    keeping.start_keeper()
    open_lease(stage="vqe").release()

    find_stage("vqe").folder.environment.unlink()

    open_lease(stage="vqe").release()
    keeping.close()
    keeping.wait_for_keeper()
    assert "publishes its lease again" in keeping.errors
    assert not find_stage("vqe").folder.environment.exists()
    keeping.require_paid_once(tasks=0, sessions=1)


def test_a_keeper_whose_stage_is_damaged_leaves_no_lease_and_no_token(vendor, keeping):
    keeping.start_keeper()
    open_lease(stage="vqe").release()
    folder = find_stage("vqe").folder

    folder.stage.write_text("")

    assert keeping.wait_for_keeper() == 2
    assert "not the file of a stage" in keeping.errors
    assert not folder.environment.exists()
    keeping.require_paid_once(tasks=0, sessions=1)
