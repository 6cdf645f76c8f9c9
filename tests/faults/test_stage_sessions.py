"""The session of a stage: it is active before a job starts, and is kept or closed between tasks."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_payloads import bell
from stage_runs import Keeping, Vendor
from waiting import wait_until
from warm_ups import count_warm_ups

from qrmi_workflows import find_stage, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.bill import BY_SESSION, BY_TASK
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import LeaseRecord, open_leases
from qrmi_workflows.lease.stage import StageState, update_stage
from qrmi_workflows.stages.jobs import NoJobs
from qrmi_workflows.stages.keeper import keep
from qrmi_workflows.stages.modes import Action
from qrmi_workflows.stages.session import StageSession
from qrmi_workflows.stages.warm_up import forget_warm_ups

EXECUTION, OVERHEAD, QUEUE, TTL = 0.05, 2.0, 1.5, 4.0
QUEUED = "waiting for the vendor's queue"
QPU = f"""
[qpus.{{name}}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {EXECUTION}
lanes = 2
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("stage-sessions")
    (folder / "emulator.toml").write_text(
        QPU.format(name="free")
        + QPU.format(name="busy")
        + f"queue_seconds = {QUEUE}\n"
        + QPU.format(name="lapsing")
        + f"queue_seconds = {QUEUE}\ninteractive_ttl_seconds = {TTL}\n"
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def keeping(
    request: pytest.FixtureRequest,
    running: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Keeping]:
    """The stage `vqe` on one of the QPUs, by default without a queue."""
    name = getattr(request, "param", "free")
    monkeypatch.setenv("QPU_CONFIG", str(running.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "site.toml").write_text(f"[qpus.{name}]\n")
    vendor = Vendor(running, name)
    with Keeping(vendor) as keeping:
        yield keeping
    running.control.ask("DELETE", "/faults")
    vendor.fault("close-sessions")
    vendor.hold_tasks(hold=False)


on_the_busy_qpu = pytest.mark.parametrize("keeping", ["busy"], indirect=True)
on_the_lapsing_qpu = pytest.mark.parametrize("keeping", ["lapsing"], indirect=True)


@pytest.fixture
def warm_ups(keeping: Keeping) -> Any:
    """Return how many warm-up tasks the test has caused, in a state or in all."""
    emulator, qpu = keeping.vendor.emulator.folder, keeping.vendor.qpu
    states = (None, "cancelled", "completed")
    before = {state: count_warm_ups(emulator, state, qpu) for state in states}
    return lambda state=None: count_warm_ups(emulator, state, qpu) - before[state]


def policy(keeping: Keeping, tmp_path: Path, **settings: object) -> None:
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (tmp_path / "site.toml").write_text(f"[qpus.{keeping.vendor.qpu}]\n{''.join(lines)}")


def hold_a_warm_up(keeping: Keeping, warm_ups: Any) -> None:
    """Start a keeper whose first task stays in the vendor's queue."""
    keeping.vendor.hold_tasks()
    keeping.start_keeper()
    wait_until(lambda: warm_ups() == 1, "the warm-up task")
    wait_until(lambda: [each.state for each in Journal().records()] == ["submitted"], "its record")


def released(vendor: Vendor) -> bool:
    return vendor.count("sessions", "open") == 0 and list(open_leases()) == []


def await_a_look() -> None:
    """Wait until the keeper has read the stage's file again."""
    wish = find_stage("vqe").folder.wishes / "jobs"
    for _ in range(2):  # it reads the file between two looks at the wishes
        wish.touch()
        wait_until(lambda: not wish.exists(), "a look of the keeper")


def is_ready() -> bool:
    return find_stage("vqe").state is StageState.READY


def bills(vendor: Vendor, kind: str) -> list[dict[str, Any]]:
    """Return what is billed for each task or session of the vendor's QPU."""
    return list(vendor.emulator.billing()["qpus"][vendor.qpu][kind])


def ended_warm_ups(vendor: Vendor) -> set[str]:
    query = "SELECT id FROM tasks WHERE request LIKE '%c[0] = measure $0;%' AND qpu = ?"
    with sqlite3.connect(vendor.emulator.folder / "emulator.db") as database:
        return {row[0] for row in database.execute(query, (vendor.qpu,))}


class JobsAtTheRelease(NoJobs):
    """Notes how many warm-up tasks have ended when held jobs are released, and ends the stage."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self.warm_ups: list[int] = []

    def release_waiting(self) -> None:
        self.warm_ups.append(self._count("completed"))
        update_stage("vqe", lambda now: replace(now, closing=True))


def test_held_jobs_are_released_once_the_session_is_active(keeping, warm_ups):
    jobs = JobsAtTheRelease(warm_ups)

    keep("vqe", jobs)

    assert jobs.warm_ups[0] == 1


@on_the_busy_qpu
def test_no_member_waits_in_the_vendors_queue(keeping, warm_ups):
    """The first task of the keeper has waited there; it is journaled and archived as its own."""
    keeping.start_keeper(wait=False)
    wait_until(lambda: find_stage("vqe").reason == QUEUED, "the reason")
    wait_until(is_ready, "the stage")
    with open_lease(stage="vqe", step="s") as lease:
        task = lease.run(bell(1)).task_id
    keeping.close()
    assert keeping.wait_for_keeper() == 0

    query = "SELECT started - accepted FROM tasks WHERE id = ?"
    with sqlite3.connect(keeping.vendor.emulator.folder / "emulator.db") as database:
        assert database.execute(query, (task,)).fetchone()[0] < QUEUE
    assert "s of them in the vendor's queue" in keeping.errors
    assert warm_ups() == 1
    assert [each.step for each in Journal().records()] == ["s"]
    (archived,) = Journal().records(archived=True)
    assert archived.step.startswith("stage vqe, warm-up")
    keeping.require_paid_once(tasks=1, sessions=1)


@pytest.mark.parametrize("who", ["the user", "the site"])
def test_a_warm_up_can_be_switched_off(keeping, warm_ups, tmp_path, who):
    if who == "the user":
        update_stage("vqe", lambda now: replace(now, warm_up=False))
    else:
        policy(keeping, tmp_path, warm_up=False)

    keeping.start_keeper()
    keeping.close()

    assert keeping.wait_for_keeper() == 0
    assert warm_ups() == 0


def test_a_stage_goes_on_if_its_warm_up_fails(keeping, warm_ups):
    refused = {"status": 400, "body": json.dumps({"errors": [{"message": "no"}]}), "count": 1}
    keeping.vendor.fault("status", route="POST */jobs", **refused)

    keeping.start_keeper()
    with open_lease(stage="vqe", step="s") as lease:
        lease.run(bell(1))
    keeping.close()

    assert keeping.wait_for_keeper() == 0
    assert "goes on without a warm-up task, which failed" in keeping.errors
    assert warm_ups() == 0
    keeping.require_paid_once(tasks=1, sessions=1)


@pytest.mark.parametrize(("how", "code"), [("closed", 0), ("stopped", 128 + signal.SIGTERM)])
def test_a_keeper_that_waits_in_the_vendors_queue_can_be_ended(keeping, warm_ups, how, code):
    hold_a_warm_up(keeping, warm_ups)

    if how == "closed":
        keeping.close()
    else:
        keeping.keeper.terminate()

    assert keeping.wait_for_keeper() == code
    assert warm_ups("cancelled") == 1
    assert how in find_stage("vqe").reason
    assert released(keeping.vendor)


def test_a_closing_stage_waits_for_the_session_while_a_member_needs_it(keeping, warm_ups):
    hold_a_warm_up(keeping, warm_ups)
    member = keeping.start_member("s")
    joined = find_stage("vqe").folder.members
    wait_until(lambda: list(joined.glob("[!.]*")), "the member")
    keeping.close()
    time.sleep(1.5)  # longer than the keeper's pause between two looks
    assert warm_ups("cancelled") == 0

    keeping.vendor.hold_tasks(hold=False)

    assert keeping.outcome(member) == (0, 1)
    assert keeping.wait_for_keeper() == 0
    keeping.require_paid_once(tasks=1, sessions=1)


def test_a_keeper_that_is_killed_in_the_vendors_queue_keeps_its_place(keeping, warm_ups):
    hold_a_warm_up(keeping, warm_ups)
    keeping.kill_keeper()

    keeper = keeping.start_keeper()
    wait_until(lambda: find_stage("vqe").keeper.pid == keeper.pid, "the other keeper")
    wait_until(lambda: find_stage("vqe").reason == QUEUED, "its task")
    keeping.vendor.hold_tasks(hold=False)
    wait_until(is_ready, "the stage")

    keeping.close()
    assert keeping.wait_for_keeper() == 0
    assert warm_ups() == 1
    keeping.require_paid_once(tasks=0, sessions=1)


def test_a_lease_is_not_kept_open_for_a_warm_up_that_nobody_needs(keeping, warm_ups):
    """Its stage's guard has ended the stage."""
    hold_a_warm_up(keeping, warm_ups)
    keeping.kill_keeper()
    assert [each.released for each in reap()] == [False]

    forget_warm_ups(find_stage("vqe"))

    assert [each.released for each in reap()] == [True]
    assert warm_ups("cancelled") == 1
    assert released(keeping.vendor)


def test_a_keeper_that_takes_running_tasks_over_is_ready_at_once(keeping, warm_ups):
    keeping.start_keeper()
    keeping.vendor.hold_tasks()
    member = keeping.start_member("s", tasks=2)
    wait_until(lambda: keeping.vendor.count("tasks", "accepted") == 2, "the tasks")
    keeping.kill_keeper()

    keeping.start_keeper()
    wait_until(lambda: find_stage("vqe").generation == 2, "the other keeper")

    assert warm_ups() == 1
    keeping.vendor.hold_tasks(hold=False)
    assert keeping.outcome(member) == (0, 2)


def test_members_of_a_killed_keeper_do_not_wait_for_another_warm_up(keeping, warm_ups):
    """Their next tasks make the other session active."""
    keeping.start_keeper()
    with open_lease(stage="vqe", step="s") as lease:
        keeping.kill_keeper()
        keeping.start_keeper()
        lease.run(bell(1))
    keeping.close()

    assert keeping.wait_for_keeper() == 0
    assert warm_ups() == 1
    keeping.require_paid_once(tasks=1, sessions=2)


def test_an_idle_dedicated_session_is_closed_if_its_billed_time_is_worth_more(
    keeping, warm_ups, tmp_path
):
    """The next task gets another session, which is billed from that task on."""
    policy(keeping, tmp_path, mode="dedicated", waiting_cost=0)
    keeping.start_keeper()
    billed = len(bills(keeping.vendor, "sessions")) - 1
    with open_lease(stage="vqe", step="s") as lease:
        for shots in range(1, 4):
            lease.run(bell(shots))
        wait_until(lambda: find_stage("vqe").generation == 2, "another session")
        first, second = bills(keeping.vendor, "sessions")[billed:]
        time.sleep(1)  # which nobody pays for
        assert bills(keeping.vendor, "sessions")[billed:] == [first, second]
        assert second["billed_seconds"] == 0
        keeping.close()  # or it might be worth closing this session after that task, too
        await_a_look()
        lease.run(bell(9))

    assert keeping.wait_for_keeper() == 0
    assert "decides about its session: close and reopen: idle for" in keeping.errors
    assert "close and reopen: 0 s billed" in keeping.errors
    assert warm_ups() == 1
    keeping.require_paid_once(tasks=4, sessions=2)


@pytest.mark.slow
@on_the_lapsing_qpu
def test_a_batch_that_would_lapse_is_kept_warm_at_the_price_that_was_expected(
    keeping, warm_ups, tmp_path
):
    """Two gaps are longer than the interactive TTL, so the third is expected to be, too."""
    policy(keeping, tmp_path, mode="batch", interactive_ttl=TTL)
    keeping.start_keeper()
    vendor = keeping.vendor
    with open_lease(stage="vqe", step="s") as lease:
        for shots in range(1, 4):
            lease.run(bell(shots))
            time.sleep(1.25 * TTL if shots < 3 else 0)
        wait_until(lambda: warm_ups("completed") >= 2, "another warm-up")
    keeping.close()

    assert keeping.wait_for_keeper() == 0
    assert "(for this gap and 1 more: let it lapse: " in keeping.errors
    assert f"keep it warm: {2 * OVERHEAD:.0f} s billed, 0 s waiting)" in keeping.errors
    own = [each for each in bills(vendor, "tasks") if each["id"] in ended_warm_ups(vendor)][-2:]
    for each in own:
        assert each["billed_seconds"] == pytest.approx(OVERHEAD + each["qpu_seconds"])
        assert each["qpu_seconds"] < OVERHEAD / 2


def test_another_session_that_the_keepers_own_task_opened_is_published(
    keeping, warm_ups, monkeypatch
):
    """The vendor has closed the session that the task was to keep warm."""

    def warm_up_after_the_session(self: StageSession, lease: Any) -> Action:
        if find_stage("vqe").generation == 1:
            keeping.vendor.fault("close-sessions")
            self.warm_up(lease)
        else:
            update_stage("vqe", lambda now: replace(now, closing=True))
        return Action.KEEP_WARM

    monkeypatch.setattr(StageSession, "look", warm_up_after_the_session)
    keep("vqe", NoJobs())

    assert find_stage("vqe").generation == 2
    assert warm_ups() == 2
    keeping.require_paid_once(tasks=0, sessions=2)


IN_BOTH_SESSIONS = """
import time
from fault_payloads import bell
from qrmi_workflows import find_stage, open_lease
with open_lease(stage="vqe", step="s") as lease:
    print(lease.run(bell(1)).task_id)
    while find_stage("vqe").generation == 1:
        time.sleep(0.05)
    print(lease.run(bell(2)).task_id)
"""


def test_a_stage_goes_on_in_a_batch(keeping, warm_ups, monkeypatch, tmp_path):
    """Under a second lease: each is billed by the rules of its own session."""
    vendor = keeping.vendor
    billed = len(bills(vendor, "sessions"))
    monkeypatch.setenv("QPU_LEASE_RECORD", str(tmp_path / "records"))
    member = keeping._start([sys.executable, "-c", IN_BOTH_SESSIONS])

    def go_on_in_a_batch(_session: StageSession, _lease: Any) -> Action:
        # A record is completed once the lease's usage has the task.
        completed = keeping.states("s").count("completed")
        if find_stage("vqe").generation == 1:
            return Action.BATCH if completed else Action.LET_LAPSE
        if completed == 2:
            keeping.close()
        return Action.LET_LAPSE

    monkeypatch.setattr(StageSession, "look", go_on_in_a_batch)
    keep("vqe", NoJobs())

    assert keeping.outcome(member) == (0, 2)
    assert [each["mode"] for each in bills(vendor, "sessions")[billed:]] == ["dedicated", "batch"]
    lines = (tmp_path / "records").read_text().splitlines()
    records = [LeaseRecord.from_json(line) for line in lines]
    assert [each.billing_rule for each in records] == [BY_SESSION, f"{BY_TASK} and 2 s a task"]
    assert [each.tasks for each in records] == [2, 1]
    assert (find_stage("vqe").mode, find_stage("vqe").session_mode) == ("auto", "batch")
    assert warm_ups() == 1
    keeping.require_paid_once(tasks=2, sessions=2)
