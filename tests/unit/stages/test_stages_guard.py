"""The guard, and others who find that a keeper has died."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.lease.reap import Reaped
from qrmi_workflows.lease.stage import Stage, StageState, find_stage, update_stage
from qrmi_workflows.stages import closing, guard
from qrmi_workflows.stages.closing import close_stage
from qrmi_workflows.stages.guard import ensure_guard, guard_stage, settle_stages, take_job
from qrmi_workflows.stages.opening import open_stage
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.process import Owner

WAITS = "afterok:1(unfulfilled)"


@pytest.fixture
def stage(site):
    """An open stage, with keeper's job 1 and guard's job 2."""
    opened = open_stage("vqe", qpu="ibm_fez")
    opened.folder.environment.write_text("{}")
    return opened


def test_the_guard_ends_a_stage_whose_keeper_did_not(site, stage):
    site.queue(("1", "TIMEOUT", "(null)"), ("2", "RUNNING", "(null)"), ("5", "PENDING", WAITS))

    guard_stage("vqe", stage.id)

    ended = find_stage("vqe")
    assert ended.state is StageState.ENDED
    assert ended.reason == "its keeper's job 1 ended: TIMEOUT; cancelled with it: 5"
    assert not ended.folder.environment.exists()
    assert site.commands.calls("scancel") == ["5"]
    assert f"the stage has ended: {ended.reason}" in ended.folder.log.read_text()


def test_the_guard_says_which_jobs_the_scheduler_has_cancelled(site, stage):
    mark = f"qpu_stage=vqe:{stage.id}"
    site.queue(
        ("1", "NODE_FAIL", "(null)"),
        ("5", "CANCELLED", "afterok:1(failed)", mark),
        ("6", "CANCELLED", "afterok:11(failed)", mark),
    )

    guard_stage("vqe", stage.id)

    assert find_stage("vqe").reason == ("its keeper's job 1 ended: NODE_FAIL; cancelled with it: 5")


def test_on_a_full_disk_the_jobs_are_cancelled_and_the_lease_is_reaped(
    site, stage, monkeypatch, caplog
):
    site.queue(("1", "TIMEOUT", "(null)"), ("5", "PENDING", WAITS))
    monkeypatch.setattr(Stage, "save", Mock(side_effect=OSError(28, "No space left on device")))
    reap = Mock(return_value=[])
    monkeypatch.setattr(guard, "reap", reap)

    settle_stages()

    assert not stage.folder.environment.exists()
    assert site.commands.calls("scancel") == ["5"]
    assert reap.called
    assert "cannot be marked as ended: [Errno 28] No space left on device" in caplog.text


def test_the_guard_releases_a_lease_that_the_keeper_has_left_to_tasks(site, stage, monkeypatch):
    update_stage("vqe", lambda now: replace(now, state=StageState.ENDED, reason="closed"))
    left = [Mock(lease="l", owner=Mock(job="1"))]

    def reap_later():
        kept = Reaped(lease="l", qpu="ibm_fez", released=False, kept="a task is still running")
        return [left.pop() and kept] if reap.call_count > 1 else [kept]

    reap = Mock(side_effect=reap_later)
    monkeypatch.setattr(guard, "reap", reap)
    monkeypatch.setattr(guard, "_REAP_SECONDS", 0.01)
    monkeypatch.setattr("qrmi_workflows.stages.waiting_jobs.open_leases", lambda: left)

    guard_stage("vqe", stage.id)

    assert reap.call_count == 2


@pytest.mark.parametrize("case", ["deleted", "damaged"])
def test_the_guard_of_a_folder_that_is_unusable_reaps_the_lease(site, stage, monkeypatch, case):
    reap = Mock(return_value=[])
    monkeypatch.setattr(guard, "reap", reap)
    stage.folder.stage.unlink()
    if case == "damaged":
        write_atomically(stage.folder.stage, "", mode=0o600)

    with pytest.raises((ConfigError, RequestError)):
        guard_stage("vqe", stage.id)

    assert reap.called


@pytest.mark.parametrize("case", ["ended", "opened anew"])
def test_the_guard_of_a_stage_that_has_ended_does_nothing(site, stage, case):
    update_stage("vqe", lambda now: replace(now, state=StageState.ENDED, reason="closed"))
    if case == "opened anew":
        open_stage("vqe", qpu="ibm_fez")
    before = find_stage("vqe"), site.commands.calls("squeue")

    guard_stage("vqe", stage.id)

    assert (find_stage("vqe"), site.commands.calls("squeue")) == before


def test_the_guard_of_a_keeper_that_was_requeued_after_all_has_itself_replaced(
    site, stage, monkeypatch
):
    monkeypatch.setattr(guard, "_END_SECONDS", 0.0)
    site.queue(("1", "PENDING", "(null)"), ("2", "RUNNING", "(null)"))

    guard_stage("vqe", stage.id)

    assert find_stage("vqe").guard_job == "3"
    assert not find_stage("vqe").is_ended


def test_a_keeper_that_the_scheduler_has_forgotten_has_ended(site, stage):
    (settled,) = settle_stages()

    assert settled.stage == "vqe"
    assert settled.reason == "its keeper's job 1 has ended; the scheduler no longer knows how"
    assert len(site.commands.calls("sacct")) == 1
    assert settle_stages() == []


def test_stages_are_settled_with_one_query(site, stage):
    site.queue(("1", "RUNNING", "(null)"))
    open_stage("qaoa", qpu="FRESNEL")
    site.queue(("1", "CANCELLED", "(null)"), ("3", "RUNNING", "(null)"))
    before = len(site.commands.calls("squeue"))

    assert [each.stage for each in settle_stages()] == ["vqe"]
    assert len(site.commands.calls("squeue")) - before <= 2  # another to cancel what is left


def test_without_open_stages_the_scheduler_is_not_asked(site):
    assert settle_stages() == []
    assert site.commands.calls("squeue") == []


def test_nothing_is_concluded_if_the_scheduler_does_not_answer(site, stage, caplog):
    site.commands.write("squeue", "exit 1")

    assert settle_stages() == []
    assert "cannot tell whether the keepers of open stages are alive" in caplog.text
    assert not find_stage("vqe").is_ended


def test_a_guard_that_is_gone_is_submitted_again_once(site, stage):
    ensure_guard(stage, {})
    ensure_guard(stage, {})  # as another process that has not seen the first

    assert find_stage("vqe").guard_job == "3"
    assert len(site.scripts) == 3


def test_a_keeper_records_its_job_and_submits_the_guard_if_its_opener_could_not(
    site, stage, monkeypatch
):
    update_stage("vqe", lambda now: replace(now, keeper_job=None, guard_job=None))
    monkeypatch.setenv("SLURM_JOB_ID", "1")

    take_job("vqe", stage.id)

    assert (find_stage("vqe").keeper_job, find_stage("vqe").guard_job) == ("1", "3")


def test_a_keeper_looks_after_its_guard(site, stage, monkeypatch):
    """At each of its sweeps."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    jobs = take_job("vqe", stage.id)
    site.queue(("2", "PENDING", "afterany:1(unfulfilled)"))
    jobs.release_waiting()
    assert find_stage("vqe").guard_job == "2"

    site.queue(("2", "CANCELLED", "afterany:1(unfulfilled)"))
    jobs.release_waiting()

    assert find_stage("vqe").guard_job == "3"


def test_a_stage_is_closed_by_the_last_workflow_that_opened_it(site, stage):
    site.queue(("1", "RUNNING", "(null)"))
    update_stage("vqe", lambda now: replace(now, openers=("a", "b")))

    assert not close_stage("vqe", opener="a").closing
    assert find_stage("vqe").openers == ("b",)
    assert close_stage("vqe", opener="b").closing
    assert site.commands.calls("scancel") == []


def test_a_stage_that_is_closed_by_hand_is_closed_whoever_opened_it(site, stage):
    site.queue(("1", "RUNNING", "(null)"))
    update_stage("vqe", lambda now: replace(now, openers=("a", "b")))

    assert close_stage("vqe").closing


def test_a_stage_that_nobody_waits_for_is_closed_without_its_qpu(site, stage):
    site.queue(("1", "PENDING", "(null)"), ("2", "PENDING", "afterany:1(unfulfilled)"))

    assert close_stage("vqe").reason == "closed before its QPU was granted"
    assert site.commands.calls("scancel") == ["1", "2"]


def test_closing_a_stage_leaves_the_keeper_of_one_that_was_opened_meanwhile(
    site, stage, monkeypatch
):
    site.queue(("1", "PENDING", "(null)"), ("2", "PENDING", "afterany:1(unfulfilled)"))
    mark_closed = closing._mark_closed

    def mark_late(found: Stage) -> Stage:
        update_stage("vqe", lambda now: replace(now, id="later", keeper_job="9"))
        return mark_closed(found)

    monkeypatch.setattr(closing, "_mark_closed", mark_late)
    close_stage("vqe")

    assert site.commands.calls("scancel") == ["1"]


def test_a_stage_with_a_waiting_job_is_closed_after_that_job(site, stage):
    site.queue(("1", "PENDING", "(null)"), ("5", "PENDING", WAITS))

    assert close_stage("vqe").closing
    assert site.commands.calls("scancel") == []
    assert close_stage("vqe", now=True).is_ended
    assert site.commands.calls("scancel") == ["1", "5"]


def test_a_stage_whose_keeper_was_requeued_is_closed_by_its_guard(site, stage):
    """The requeued keeper has left a lease, which the guard releases."""
    update_stage("vqe", lambda now: replace(now, keeper=Owner.this_process(None)))
    site.queue(("1", "PENDING", "(null)"), ("2", "PENDING", "afterany:1(unfulfilled)"))

    assert not close_stage("vqe", now=True).is_ended
    assert site.commands.calls("scancel") == ["1"]


def test_a_stage_whose_opener_died_before_its_keeper_was_submitted_is_ended(site, stage):
    update_stage("vqe", lambda now: replace(now, keeper_job=None, guard_job=None))

    (settled,) = settle_stages()

    assert settled.reason == "whoever opened it died before it had a keeper"
    assert find_stage("vqe").is_ended


def test_the_job_of_a_keeper_whose_opener_died_is_recorded(site, stage):
    update_stage("vqe", lambda now: replace(now, keeper_job=None, guard_job=None))
    site.queue(("7", "PENDING", "(null)", f"qpu_keeper=vqe:{stage.id}", "qpu-keeper-vqe"))

    assert settle_stages() == []
    assert find_stage("vqe").keeper_job == "7"


def test_a_keeper_that_is_submitted_while_jobs_are_listed_has_not_ended(site, stage, monkeypatch):
    update_stage("vqe", lambda now: replace(now, keeper_job=None))

    def list_then_submit(*_args):
        update_stage("vqe", lambda now: replace(now, keeper_job="9"))
        return {}

    monkeypatch.setattr(guard, "list_jobs", list_then_submit)

    assert settle_stages() == []
    assert not find_stage("vqe").is_ended


def test_a_stage_of_another_cluster_is_left_alone(site, stage):
    update_stage("vqe", lambda now: replace(now, cluster="elsewhere"))

    assert settle_stages() == []
    with pytest.raises(RequestError, match="is open on cluster 'elsewhere'"):
        open_stage("vqe", qpu="ibm_fez")


def test_a_keeper_goes_on_without_a_guard_whose_script_was_deleted(site, stage, caplog):
    (stage.folder.path / "guard.sh").unlink()

    ensure_guard(stage, {})

    assert "guard.sh is missing: stage 'vqe' has no guard" in caplog.text
