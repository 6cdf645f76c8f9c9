"""The stages of a run: when each is opened, and what the user is told about it."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.stage import Stage, StageState, find_stage
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.state.locks import lock_file
from snakemake_executor_plugin_slurm_qpu import stages
from snakemake_executor_plugin_slurm_qpu.stage_requests import StagePlan
from snakemake_executor_plugin_slurm_qpu.stages import OpenStages, StageJob, keeper_options

PLAN = StagePlan(
    name="vqe",
    request=QPURequest(qpu="fez"),
    mode="batch",
    why="none of its 3 jobs with the QPU waits for another's answer",
    job=SimpleNamespace(),
)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The arguments of each `open_stage` and `close_stage`; the stages are real."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    calls = []

    def open_stage(name, **options):
        calls.append(options)
        stage = Stage(name=name, qpu=options["qpu"], type="t", mode="batch", keeper_job="7")
        with stage.folder.locked():
            stage.save()
        return stage

    monkeypatch.setattr(stages, "open_stage", open_stage)
    monkeypatch.setattr(stages, "settle_stages", lambda name: None)

    def close_stage(name, *, opener):
        calls.append(opener)
        stage = find_stage(name)
        return replace(stage, closing=not stage.openers)

    monkeypatch.setattr(stages, "close_stage", close_stage)
    return calls


@pytest.fixture
def run(caplog):
    caplog.set_level(logging.INFO)
    return OpenStages(logging.getLogger("run"), idle_limit=30, time_limit=90)


def enter(run):
    return run.enter(PLAN, lambda: {"account": "physics", "lanes": 2})


def change(stage, **changes):
    with stage.folder.locked():
        replace(stage, **changes).save()


def test_a_stage_is_opened_once_for_all_its_jobs(run, opened, caplog):
    assert enter(run) == enter(run)

    assert opened == [
        {
            "qpu": "fez",
            "mode": "batch",
            "lanes": 2,
            "account": "physics",
            "opener": run.opener,
            "idle_limit": 30,
            "time": "90",
        }
    ]
    assert "held by SLURM job 7" in caplog.text
    assert "Mode batch: none of its 3 jobs with the QPU waits for another's answer." in caplog.text


@pytest.mark.parametrize(
    "changes", [{"state": StageState.ENDED, "reason": "it was idle"}, {"closing": True}]
)
def test_a_stage_that_takes_no_more_jobs_is_opened_again(run, opened, caplog, changes):
    first = enter(run)
    change(first, **changes)

    assert not run.is_open("vqe")
    assert enter(run).id != first.id
    assert run.is_open("vqe")
    assert len(opened) == 2
    assert ("has ended: it was idle" in caplog.text) == ("reason" in changes)


def test_a_stage_whose_keeper_was_killed_takes_no_more_jobs(run, opened, monkeypatch):
    stage = enter(run)
    asked = []

    def settle_stages(name):
        asked.append(name)
        change(stage, state=StageState.ENDED, reason="its keeper's job was cancelled")

    monkeypatch.setattr(stages, "settle_stages", settle_stages)
    with lock_file(stage.folder.alive):
        assert run.is_open("vqe")
    assert not run.is_open("vqe")
    assert asked == ["vqe"]


def test_a_stage_is_closed_once_under_the_name_that_a_rerun_has_too(run, opened):
    enter(run)
    run.close("vqe")
    run.close("vqe")

    assert opened[1:] == [run.opener]
    assert run.names == []
    assert OpenStages(None, idle_limit=1, time_limit=0).opener == run.opener


def test_a_stage_that_others_use_is_left_open(run, opened, caplog):
    change(enter(run), openers=("user",))
    run.close("vqe")
    run.await_end(60.0)

    assert caplog.messages[-1] == "Stage 'vqe' stays open, because others use it: user."


def test_a_stage_that_cannot_be_closed_is_reported_with_the_remedy(
    run, opened, caplog, monkeypatch
):
    def close_stage(name, *, opener):
        raise RequestError("its folder is gone.")

    enter(run)
    monkeypatch.setattr(stages, "settle_stages", lambda name: None)
    monkeypatch.setattr(stages, "close_stage", close_stage)
    run.close("vqe")

    assert "could not be closed: its folder is gone. It ends after 600 s" in caplog.text
    assert "`qpu stage close vqe`" in caplog.text


def test_the_keeper_is_pointed_to_a_held_job_only(run, opened):
    stage = enter(run)
    StageJob(stage=stage, options=("--comment=c",), comment="c").announce()
    assert list(stage.folder.wishes.iterdir()) == []

    StageJob.of(stage, "rule_a_job_1-1", []).announce()
    (wish,) = stage.folder.wishes.iterdir()
    assert wish.name.startswith("jobs-")


def test_a_job_of_a_stage_is_marked_and_waits_for_the_keeper_and_for_orphans(run, opened):
    entered = StageJob.of(enter(run), "rule_a_job_1-1", ["3"])

    assert entered.comment == f"rule_a_job_1-1 qpu_stage=vqe:{entered.stage.id}"
    assert "--dependency=afterok:7,afterany:3" in entered.options


def test_the_user_is_told_what_held_jobs_wait_for_and_when_that_changes(
    run, opened, caplog, monkeypatch
):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock.now)
    stage = enter(run)
    change(stage, reason="the keeper's job 7 is pending: Resources")
    run.tell_waiting(stage)
    run.tell_waiting(stage)
    change(stage, reason="waiting for the vendor's queue")
    run.tell_waiting(stage)
    for _ in range(2):
        clock.now += 60
        run.tell_waiting(stage)
    change(stage, state=StageState.READY)
    clock.now += 60
    run.tell_waiting(stage)

    told = [each.getMessage() for each in caplog.records if "Mode" not in each.getMessage()]
    assert told == [
        "Jobs of stage 'vqe' wait in the queue until it is ready (the keeper's job 7 is pending: "
        "Resources). No node waits with them.",
        "Stage 'vqe' is not ready yet: waiting for the vendor's queue.",
    ]


def test_the_end_of_a_stage_explains_why_its_job_failed(run, opened, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "settle_stages", asked.append)
    stage = enter(run)
    assert run.why_ended(stage) == ""
    assert asked == ["vqe"]
    assert run.ended_ids() == set()

    change(stage, state=StageState.ENDED, reason="the vendor refused")
    assert run.why_ended(stage) == "Stage 'vqe' has ended: the vendor refused."
    assert run.ended_ids() == {stage.id}


def test_a_stage_that_does_not_end_is_reported(run, opened, caplog):
    enter(run)
    run.close("vqe")
    run.await_end(0.0)

    assert "has not ended yet: SLURM job 7 still holds QPU fez" in caplog.text


def test_the_lease_of_a_stage_is_logged_when_its_record_is_there(run, opened, monkeypatch):
    records, logged = [0, 1], []

    def log_leases(logger, rule, job_id, since):
        logged.append((rule, job_id))
        return records.pop(0)

    monkeypatch.setattr(stages, "log_leases", log_leases)
    stage = enter(run)
    run.close("vqe")
    run.log_ended()
    assert logged == []

    change(stage, state=StageState.ENDED)
    with lock_file(stage.folder.alive):  # its keeper releases the last of its leases
        run.log_ended()
        assert logged == []
    for _ in range(3):
        run.log_ended()
    assert logged == [("stage vqe", "7")] * 2


@pytest.mark.parametrize(
    ("resources", "settings", "expected"),
    [
        ({}, {}, ()),
        ({"qos": "long"}, {}, ("--qos=long",)),
        ({"qos": "long"}, {"qos": "high"}, ("--qos=high",)),
        ({}, {"reservation": "qday"}, ("--reservation=qday",)),
        ({"slurm_extra": "'--reservation=a' -x n1"}, {"reservation": "b"}, ("--reservation=a",)),
        ({"slurm_extra": "--reservation mine"}, {}, ("--reservation=mine",)),
        ({"slurm_extra": "--no--reservation=a --comment-x"}, {}, ()),
    ],
)
def test_the_keeper_is_in_the_reservation_of_the_stages_jobs(resources, settings, expected):
    given = SimpleNamespace(**{"qos": None, "reservation": None} | settings)

    assert keeper_options(resources, given) == expected
