"""Process identity: whether the process that a record names is alive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from qrmi_workflows.state.process import JobIdentity, Owner

ME = Owner.this_process(None)
JOB = JobIdentity(id="17", cluster="c", restart=1)
CHILD = """
import dataclasses, json, sys
from qrmi_workflows.state.process import Owner
print(json.dumps(dataclasses.asdict(Owner.this_process(None))), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_a_process_is_alive_until_it_has_died(child):
    owner = Owner(**json.loads(child.stdout.readline()))
    assert owner.is_alive()

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert owner.is_alive() is False, "a zombie"
    child.wait()
    assert owner.is_alive() is False


@pytest.mark.parametrize("change", [{"started": ME.started + 1}, {"boot": "another"}])
def test_a_later_process_with_the_same_id_is_another(change):
    assert ME.is_alive()
    assert replace(ME, **change).is_alive() is False


def test_another_host_cannot_tell():
    assert ME.is_on_this_host
    elsewhere = replace(ME, host="n9")
    assert not elsewhere.is_on_this_host
    assert elsewhere.is_alive() is None


def test_another_namespace_of_process_ids_cannot_tell():
    """A container may share the host's name and files, but not its processes."""
    assert replace(Owner.this_process(None), pids="pid:[1]").is_alive() is None


def test_a_requeued_job_is_told_from_its_earlier_run():
    owner = Owner.this_process(replace(JOB, restart=0))

    assert owner.was_requeued(JOB)
    assert not owner.was_requeued(replace(JOB, restart=0))
    assert not owner.was_requeued(replace(JOB, id="18"))
    assert not owner.was_requeued(replace(JOB, cluster="d"))
    assert not owner.was_requeued(None)
    assert not ME.was_requeued(JOB)


def test_an_owner_survives_json():
    owner = Owner.this_process(JOB)

    assert (owner.job, owner.cluster, owner.restart) == ("17", "c", 1)
    assert Owner(**json.loads(json.dumps(asdict(owner)))) == owner
