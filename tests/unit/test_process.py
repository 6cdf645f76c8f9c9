"""Whether the process that a record names still lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from qrmi_workflows.state.process import Owner

ME = Owner.this_process({})


def of_child(process: subprocess.Popen) -> Owner:
    """Describe a child, which describes itself."""
    return Owner.from_document(json.loads(process.stdout.readline()))


@pytest.fixture
def child():
    program = (
        "import json, sys; from qrmi_workflows.owner import Owner\n"
        "print(json.dumps(Owner.this_process().to_document()), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_it_lives_until_it_is_dead(child):
    owner = of_child(child)
    assert owner.is_alive()

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert owner.is_alive() is False, "a zombie"
    child.wait()
    assert owner.is_alive() is False


@pytest.mark.parametrize("change", [{"started": ME.started + 1}, {"boot": "another"}])
def test_another_process_of_the_same_id_is_another(change):
    assert ME.is_alive()
    assert replace(ME, **change).is_alive() is False


def test_another_host_cannot_tell():
    assert replace(ME, host="n9").is_alive() is None


def test_a_job_that_was_requeued_is_told_from_its_earlier_run():
    environ = {"SLURM_JOB_ID": "17", "SLURM_CLUSTER_NAME": "c", "SLURM_RESTART_COUNT": "1"}
    owner = Owner.this_process({"SLURM_JOB_ID": "17", "SLURM_CLUSTER_NAME": "c"})

    assert owner.was_requeued(environ)
    assert not owner.was_requeued({**environ, "SLURM_RESTART_COUNT": "0"})
    assert not owner.was_requeued({**environ, "SLURM_JOB_ID": "18"})
    assert not owner.was_requeued({**environ, "SLURM_CLUSTER_NAME": "d"})
    assert not ME.was_requeued(environ)
    assert Owner.from_document(owner.to_document()) == owner


def test_a_restart_count_that_is_no_number_counts_as_none():
    assert Owner.this_process({"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "x"}).restart == 0
