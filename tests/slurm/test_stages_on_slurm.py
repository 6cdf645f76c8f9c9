"""Stages of several jobs on a real Slurm: waiting jobs, the keeper, the guard."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from changing_files import files_below, read_if_there
from job_times import expire, start_again
from site_under_test import Site, run
from stage_user import QPU, USE, User
from waiting import suspend, wait_until

from qrmi_workflows.errors import RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.stage import Published, Stage, StageState, find_stage
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.stages.closing import close_stage
from qrmi_workflows.stages.opening import open_stage, wait_until_ready

pytestmark = pytest.mark.slurm

PROGRAM = """OPENQASM 3.0;
include "stdgates.inc";
bit[1] meas;
x $0;
meas[0] = measure $0;
"""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A stage that waits for the QPU: its job, and the job that holds the QPU."""

    stage: Stage
    job: int
    blocker: int


def hold_qpu(site: Site) -> int:
    """Start a job that holds the QPU."""
    blocker = site.submit("sleep 600", "--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")
    site.wait_for(blocker, "RUNNING")
    return blocker


@pytest.fixture
def user(
    in_sandbox: Sandbox, shared_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> User:
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return User(shared_site)


@pytest.fixture
def held(user: User) -> Held:
    """Open a stage whose QPU another job holds, and submit a job to it that has to wait."""
    blocker = hold_qpu(user.site)
    stage = open_stage("vqe", qpu="ibm_fez")
    return Held(stage=stage, job=user.submit(stage), blocker=blocker)


def test_the_commands_of_the_help_text(user):
    """The stage's job waits in the queue until the QPU is ready, then uses the keeper's lease."""
    before = user.sessions()
    blocker = hold_qpu(user.site)
    user.qpu("stage", "open", "vqe", "--qpu", "ibm_fez")
    options = user.qpu("stage", "options", "vqe").split()
    assert [each.partition("=")[0] for each in options] == [
        "--comment", "--dependency", "--kill-on-invalid-dep",
    ]  # fmt: skip
    (after_too,) = user.qpu("stage", "options", "vqe", "--after", "1").split()[1:2]
    assert after_too == f"{options[1]},afterany:1"
    job = user.site.submit(USE, f"--output={user.log}", *options)
    user.site.slurm("scancel", str(blocker))
    user.qpu("stage", "open", "vqe", "--qpu", "ibm_fez", "--wait")

    user.site.wait_for(job)
    shown = json.loads(user.qpu("stage", "show", "vqe", "--json"))
    assert shown["state"] == "ready"
    assert user.qpu("stage", "options", "vqe").split() == options[:1]
    assert user.qpu("stage", "close", "vqe") == "stage vqe of ibm_fez: closing\n"
    assert user.wait_for_end().reason == "closed"
    assert [one["name"] for one in json.loads(user.qpu("stage", "list", "--json"))] == ["vqe"]
    after = user.sessions()
    assert (after["opened"] - before["opened"], after["open"]) == (1, 0)
    user.site.wait_for(int(shown["keeper_job"]))


def test_waiting_jobs_start_when_the_qpu_is_ready_not_before(user, held):
    wait_until(lambda: user.reason(held.job) == "Dependency", "Slurm to look at the job")
    assert user.site.states()[int(held.stage.keeper_job)] == "PENDING"

    user.site.slurm("scancel", str(held.blocker))
    wait_until_ready("vqe")

    user.site.wait_for(held.job)


@pytest.mark.parametrize("who", ["keeper", "guard and keeper", "all"])
def test_no_job_waits_for_a_stage_whose_jobs_are_cancelled(user, held, who):
    stage, job = held.stage, held.job
    jobs = {
        "keeper": [stage.keeper_job],
        "guard and keeper": [stage.guard_job, stage.keeper_job],
        "all": [stage.guard_job, stage.keeper_job, str(job)],
    }[who]

    user.site.slurm("scancel", *jobs)

    user.site.wait_for(job, "CANCELLED")
    if who == "keeper":  # otherwise nobody has told the stage
        wait_until(lambda: find_stage("vqe").is_ended, "the guard")
    user.qpu("stage", "list")
    assert find_stage("vqe").reason == (
        f"its keeper's job {stage.keeper_job} ended: CANCELLED; cancelled with it: {job}"
    )


def test_a_keeper_that_is_killed_is_started_again(user):
    open_stage("vqe", qpu="ibm_fez")
    first = wait_until_ready("vqe")

    os.kill(first.keeper.pid, 9)

    wait_until(lambda: find_stage("vqe").generation == 2, "another keeper")
    stage = find_stage("vqe")
    assert (stage.state, stage.keeper_job) == (StageState.READY, first.keeper_job)
    user.site.wait_for(user.submit(stage))
    close_stage("vqe")
    user.wait_for_end()
    assert user.sessions()["open"] == 0


def test_a_stage_goes_on_after_its_keepers_job_was_requeued(user):
    """By an administrator, or for a job that comes first (PreemptMode=REQUEUE)."""
    open_stage("vqe", qpu="ibm_fez")
    keeper = str(wait_until_ready("vqe").keeper_job)

    user.site.slurm("scontrol", "requeue", keeper)
    user.site.wait_for(int(keeper), "PENDING")
    paused = find_stage("vqe")
    assert (paused.state, paused.keeper_job) == (StageState.OPENING, keeper)
    assert paused.keeper is None
    assert "its keeper's job was requeued" in paused.reason
    assert user.sessions()["open"] == 0, "nobody pays while it waits"
    job = user.submit(paused)

    start_again(keeper)
    user.site.wait_for(job)
    assert find_stage("vqe").generation == 2
    close_stage("vqe")
    assert user.wait_for_end().reason == "closed"
    assert user.sessions()["open"] == 0


def test_a_stage_whose_keepers_job_was_requeued_can_be_closed(user):
    """If nobody needs it, it does not wait for the QPU first."""
    open_stage("vqe", qpu="ibm_fez")
    keeper = str(wait_until_ready("vqe").keeper_job)
    user.site.slurm("scontrol", "requeue", keeper)
    user.site.wait_for(int(keeper), "PENDING")

    assert close_stage("vqe").is_ended

    user.site.wait_for(int(keeper), "CANCELLED")
    assert user.sessions()["open"] == 0


def test_the_guard_cleans_up_after_a_keeper_whose_job_was_killed(user):
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")

    user.site.slurm("scancel", "--batch", "--signal=KILL", str(stage.keeper_job))

    assert f"its keeper's job {stage.keeper_job} ended: FAILED" in user.wait_for_end().reason
    assert user.sessions()["open"] == 0
    wait_until(lambda: "of ibm_fez: released" in stage.folder.log.read_text(), "the log")
    assert "'vqe' is ready" in stage.folder.log.read_text()  # the keeper's own lines are kept


def test_a_task_in_flight_outlives_its_keeper_and_is_paid_once(user, tmp_path):
    """The guard releases the lease when the task has ended, and its job gets the result."""
    (tmp_path / "one.qasm").write_text(PROGRAM)
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")
    before = user.control.counters()["qpus"]["ibm_fez"]["tasks"]
    user.control.ask("PATCH", "/qpus/ibm_fez", {"availability": "paused"})
    try:
        payload, result = tmp_path / "one.qasm", tmp_path / "result.json"
        command = f"{' '.join(QPU)} run {payload} -o {result}"
        job = user.submit(stage, f"export QPU_STAGE=vqe\nexec {command}")
        wait_until(
            lambda: "submitted" in [record.state for record in Journal().records()], "a task"
        )
        user.site.slurm("scancel", "--batch", "--signal=KILL", str(stage.keeper_job))
        wait_until(lambda: "1 task is" in stage.folder.log.read_text(), "the guard")
        assert user.sessions()["open"] == 1
    finally:
        user.control.ask("PATCH", "/qpus/ibm_fez", {"availability": "online"})

    user.wait_for_end()
    user.site.wait_for(job)

    assert result.exists()
    assert user.sessions()["open"] == 0
    after = user.control.counters()["qpus"]["ibm_fez"]["tasks"]
    done = {key: after[key] - before[key] for key in ("accepted", "completed")}
    assert done == {"accepted": 1, "completed": 1}


def test_qpu_reap_cleans_up_if_the_guard_is_lost_too(user):
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")
    keeper = psutil.Process(stage.keeper.pid)
    suspend(keeper)  # it must not replace the guard, or end the stage when its shell is killed
    user.site.slurm("scancel", str(stage.guard_job))
    user.site.slurm("scancel", "--batch", "--signal=KILL", str(stage.keeper_job))
    with suppress(psutil.NoSuchProcess):  # Slurm may have killed it with its shell
        keeper.kill()
    wait_until(lambda: user.site.states()[int(stage.keeper_job)] == "FAILED", "the keeper's end")

    done = run(*QPU, "reap", environ=dict(os.environ))

    assert done.returncode == 0
    assert (
        f"stage 'vqe' has ended: its keeper's job {stage.keeper_job} ended: FAILED" in done.stderr
    )
    user.wait_for_end()
    assert user.sessions()["open"] == 0


@pytest.mark.slow
def test_the_keepers_time_limit_ends_the_stage(user):
    """Slurm checks time limits every 30 seconds."""
    open_stage("vqe", qpu="ibm_fez", time="10")
    stage = wait_until_ready("vqe")
    job = user.submit(stage, USE.replace("-- true", "-- sleep 60"))
    user.site.wait_for(job, "RUNNING")
    expire(stage.keeper_job)

    user.wait_for_end()

    user.site.wait_for(int(stage.keeper_job), "TIMEOUT")
    # The guard says so instead if the keeper did not get to it within KillWait.
    assert re.search("its time limit|ended: TIMEOUT", find_stage("vqe").reason)
    assert user.sessions()["open"] == 0


def test_a_lost_guard_is_replaced_by_the_keeper(user):
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")
    user.site.slurm("scancel", str(stage.guard_job))

    (stage.folder.wishes / "jobs").touch()  # have the keeper look now

    wait_until(lambda: find_stage("vqe").guard_job != stage.guard_job, "another guard")
    close_stage("vqe", now=True)
    user.wait_for_end()


def test_a_second_stage_that_wants_the_qpu_waits_in_slurm(user):
    open_stage("vqe", qpu="ibm_fez")
    wait_until_ready("vqe")
    second = open_stage("qaoa", qpu="ibm_fez")
    assert user.site.states()[int(second.keeper_job)] == "PENDING"

    with pytest.raises(RequestError, match="stage 'vqe' is open with QPU 'ibm_fez', not 'FRESNEL'"):
        open_stage("vqe", qpu="FRESNEL")
    close_stage("vqe")

    wait_until_ready("qaoa")
    close_stage("qaoa")
    user.wait_for_end("qaoa")


def test_a_stage_whose_workflow_died_ends_after_its_idle_limit(user):
    blocker = hold_qpu(user.site)  # the idle limit counts from the keeper's start
    open_stage("vqe", qpu="ibm_fez", opener="a workflow", idle_limit=1.0)
    job = user.submit(find_stage("vqe"))
    user.site.slurm("scancel", str(blocker))

    user.site.wait_for(job)

    assert "it had nothing to do" in user.wait_for_end().reason
    wait_until(lambda: "PENDING" not in user.site.states().values(), "the guard's cancellation")
    assert user.sessions()["open"] == 0


def test_a_stage_that_is_closed_at_once_takes_the_qpu_from_its_jobs(user):
    open_stage("vqe", qpu="ibm_fez")
    wait_until_ready("vqe")
    job = user.submit(find_stage("vqe"), USE.replace("-- true", "-- sleep 30"))
    user.site.wait_for(job, "RUNNING")

    close_stage("vqe", now=True)

    user.wait_for_end()
    assert user.sessions()["open"] == 0


def test_a_job_of_a_stage_that_has_ended_is_refused(user):
    open_stage("vqe", qpu="ibm_fez")
    close_stage("vqe", now=True)
    user.wait_for_end()

    done = run(*QPU, "stage", "options", "vqe", environ=dict(os.environ))

    assert done.returncode == 1
    assert "a job needs an open stage. Open it again: `qpu stage open vqe" in done.stderr


def test_slurm_stores_no_token(user, in_sandbox):
    """Not even of a stage that is opened under the lease of another one."""
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")
    inner = f"{' '.join(QPU)} stage open inner --qpu FRESNEL"
    user.site.wait_for(user.submit(stage, USE.replace("-- true", f"-- {inner}")))
    wait_until_ready("inner")
    token = Published.load(stage.folder).qpu.token
    jobs = [find_stage(name) for name in ("vqe", "inner")]

    stored = list(files_below(in_sandbox.directory))
    stored = [file for file in stored if "emulator" not in file.parts]
    stored += [each.folder.path / name for each in jobs for name in ("keeper.sh", "guard-job.sh")]
    stored += [each.folder.log for each in jobs]
    shown = user.site.slurm("scontrol", "--details", "show", "job")

    assert any(f"job.{stage.guard_job}" in file.parts for file in stored), "Slurm's own files"
    assert [file for file in stored if token.encode() in read_if_there(file)] == []
    assert token not in shown
    close_stage("inner")
    close_stage("vqe")
    user.wait_for_end("inner")
    user.wait_for_end("vqe")
