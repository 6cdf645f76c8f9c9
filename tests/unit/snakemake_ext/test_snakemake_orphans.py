"""Which jobs of earlier runs a new job has to wait for."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qrmi_workflows.schedulers.base import JobState, JobStatus
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.state.process import Owner
from snakemake_executor_plugin_slurm_qpu import orphans
from snakemake_executor_plugin_slurm_qpu.orphans import Orphans, find_orphans

STEM = "rule_quantum_wildcards_a"
ALIVE = JobStatus(state=JobState.RUNNING, name="dead run", comment=f"{STEM}_job_7-1")


@pytest.mark.parametrize(
    ("state", "is_completing", "expected"),
    [
        (JobState.PENDING, False, ["41"]),
        (JobState.HELD, False, ["41"]),
        (JobState.RUNNING, False, ["41"]),
        (JobState.UNKNOWN, False, ["41"]),
        (JobState.CANCELLED, True, ["41"]),
        (JobState.CANCELLED, False, []),
        (JobState.COMPLETED, False, []),
    ],
)
def test_an_orphan_is_waited_for_until_it_writes_nothing_any_more(state, is_completing, expected):
    listed = {"41": replace(ALIVE, state=state, is_completing=is_completing)}

    assert find_orphans(listed, ["41"], [], STEM) == expected
    assert find_orphans(listed, [], ["dead run"], STEM) == expected


def test_ids_that_are_no_jobs_of_the_user_are_ignored():
    """Marks of other executors, of another cluster, or of jobs that Slurm has forgotten."""
    assert find_orphans({"41": ALIVE}, ["Submitted batch job 5", "987654"], [], "other") == []


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another run"},
        {"comment": "rule_quantum_wildcards_ab_job_7-1"},
        {"comment": "rule_quantum_job_7-1"},
        {"comment": ""},
    ],
)
def test_a_job_for_other_outputs_or_of_another_run_is_not_waited_for(other):
    assert find_orphans({"41": replace(ALIVE, **other)}, [], ["dead run"], STEM) == []


class Persistence:
    """Snakemake's marks."""

    def __init__(self, *ids: str) -> None:
        self.external_jobids = lambda _job: ids


JOB = SimpleNamespace(
    name="quantum", wildcards=["a"], jobid=3, attempt=1, resources={}, is_group=lambda: False
)


@pytest.fixture
def queue(monkeypatch):
    """Replace the query; count its calls."""
    asked = []

    def list_jobs(_scheduler, argv):
        asked.append(argv)
        return {"41": ALIVE, "42": replace(ALIVE, name="this run")}

    monkeypatch.setattr(orphans, "list_jobs", list_jobs)
    return asked


def earlier_run(runs, name, *, alive=False, days=0):
    owner = Owner.this_process(None)
    folder = runs / name.replace(" ", "_")
    folder.mkdir()
    run = {"name": name, "owner": asdict(owner if alive else replace(owner, boot="earlier"))}
    (folder / "run.json").write_text(json.dumps(run))
    written = time.time() - days * 86400
    os.utime(folder / "run.json", (written, written))
    return folder


def test_slurm_is_not_asked_while_there_is_no_sign_of_an_earlier_run(tmp_path, queue, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "own").mkdir(parents=True)
    found = Orphans(Path("runs"))
    found.remember(tmp_path / "runs" / "own", "this run")

    assert found.of_job(JOB, Persistence()) == []
    assert not queue


def test_jobs_whose_ids_snakemake_has_lost_are_found_by_the_name_of_their_run(tmp_path, queue):
    earlier_run(tmp_path, "dead run")
    found = Orphans(tmp_path)

    assert found.of_job(JOB, Persistence()) == ["41"]
    assert found.of_job(JOB, Persistence("42")) == ["41", "42"]
    assert queue == [Slurm().status_argv()], "once in a run"


def test_a_retry_waits_for_an_attempt_that_slurm_has_accepted_without_an_answer(tmp_path, queue):
    found = Orphans(tmp_path)

    assert found.of_job(JOB, Persistence(), unanswered="this run") == ["42"]
    assert found.of_job(JOB, Persistence(), unanswered="this run") == ["42"]
    assert len(queue) == 2, "the job may have appeared since"


def test_the_old_folder_of_a_dead_run_without_jobs_is_removed(tmp_path, queue):
    kept = {
        earlier_run(tmp_path, "dead run", days=31),
        earlier_run(tmp_path, "other run", days=31, alive=True),
        earlier_run(tmp_path, "recent run", days=29),
    }
    gone = earlier_run(tmp_path, "ended run", days=31)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")

    Orphans(tmp_path).of_job(JOB, Persistence())

    assert not gone.exists()
    assert all(folder.exists() for folder in kept)
