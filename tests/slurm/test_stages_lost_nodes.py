"""A stage whose keeper's node is lost, on a real Slurm of two nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from job_times import start_again
from killing import kill_at_once
from site_under_test import Site
from stage_user import User
from waiting import wait_until

from qrmi_workflows.lease.stage import Stage, StageState, find_stage
from qrmi_workflows.stages.closing import close_stage
from qrmi_workflows.stages.opening import open_stage, wait_until_ready

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def user(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path) -> User:
    """A user of a Slurm of this test's own."""
    for name, value in site.box.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return User(site)


@pytest.fixture
def lose_keepers_node(user: User) -> Callable[[Stage], None]:
    """Kill all that runs on the node of a keeper's job, as a power failure does."""

    def lose(stage: Stage) -> None:
        node = user.site.slurm("squeue", "--noheader", f"--jobs={stage.keeper_job}", "--format=%N")
        daemons = [psutil.Process(user.site.pids()[f"slurmd-{node.strip()}"])]
        job = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("QPU_SANDBOX") == os.environ["QPU_SANDBOX"]
                if ours and process.environ().get("SLURM_JOB_ID") == stage.keeper_job:
                    job.append(process)
                    # Not by the job's id: another sandbox may have a job of this id.
                    parent = process.parent()
                    if parent is not None and "slurmstepd: [" in " ".join(parent.cmdline()):
                        daemons.append(parent)
        kill_at_once(daemons)  # first: they would tell Slurm how the job's processes have ended
        kill_at_once(job)
        user.site.slurm(
            "scontrol", "update", f"NodeName={node.strip()}", "State=DOWN", "Reason=lost"
        )

    return lose


@pytest.mark.timeout(300)
def test_slurm_requeues_the_keeper_and_waiting_jobs_go_on_waiting(user, lose_keepers_node):
    open_stage("vqe", qpu="ibm_fez")
    stage = wait_until_ready("vqe")

    lose_keepers_node(stage)

    keeper = int(stage.keeper_job)
    wait_until(lambda: user.site.states()[keeper] == "PENDING", "the requeue")
    job = user.submit(find_stage("vqe"))
    # Slurm looks at it at once, or, if it is busy with the lost node, at its next look of a minute.
    wait_until(lambda: user.reason(job) == "Dependency", "the job to wait", seconds=120)
    start_again(keeper)
    user.site.wait_for(job)
    again = find_stage("vqe")
    assert (again.state, again.generation) == (StageState.READY, 2)
    close_stage("vqe")
    assert user.wait_for_end().reason == "closed"
    assert user.sessions()["open"] == 0


def test_the_guard_cleans_up_where_slurm_does_not_requeue(user, lose_keepers_node):
    open_stage("vqe", qpu="ibm_fez", options=["--no-requeue"])
    stage = wait_until_ready("vqe")

    lose_keepers_node(stage)

    assert user.wait_for_end().reason == f"its keeper's job {stage.keeper_job} ended: NODE_FAIL"
    assert user.sessions()["open"] == 0
