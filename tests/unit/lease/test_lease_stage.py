"""The folder of a stage: whose it is, and what it says."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows import open_lease
from qrmi_workflows.errors import ConfigError, LeaseError, RequestError
from qrmi_workflows.lease.acquire import find_qpu, stage_to_join
from qrmi_workflows.lease.membership import Membership
from qrmi_workflows.lease.stage import (
    Published,
    Stage,
    StageState,
    find_stage,
    list_stages,
    update_stage,
)
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.state.locks import create_locked, is_locked
from qrmi_workflows.state.process import Owner

QPU = {
    "QRMI_JOB_QPU_RESOURCES": "ibm_fez",
    "QRMI_JOB_QPU_TYPES": "ibm-quantum-compute-service",
    "ibm_fez_QRMI_JOB_ACQUISITION_TOKEN": "t-1",
}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose keeper, this process, holds `ibm_fez`."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    monkeypatch.setenv("QPU_STAGE_WAIT", "0.1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    stage = Stage(
        name="vqe",
        qpu="ibm_fez",
        type="ibm-quantum-compute-service",
        lanes=2,
        keeper=Owner.this_process(None),
        state=StageState.READY,
        generation=1,
    )
    with stage.folder.locked():
        stage.save()
    Published(stage=stage.id, generation=1, variables=QPU).save(stage.folder)
    return stage


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "-x", "a b", "a,b", "a:b", "é", "a\n", "x" * 65, 3]
)
def test_names_that_are_not_plain_are_refused(stage, name):
    with pytest.raises(RequestError, match="must be 1 to 64 letters"):
        StageFolder.of(name)


def test_a_stage_is_written_and_read_whole(stage):
    stage = replace(stage, openers=("a workflow",), reason="waits", cluster="c")
    with stage.folder.locked():
        stage.save()

    assert find_stage("vqe") == stage
    assert list_stages() == [stage]


def test_the_token_is_readable_by_its_user_alone(stage):
    folder = stage.folder
    for path in (folder.path, folder.stage, folder.environment, folder.members, folder.wishes):
        assert path.stat().st_mode & 0o077 == 0, path
    assert "t-1" not in repr(Published.load(folder))


def test_an_unknown_stage_is_refused_with_those_that_are_open(stage):
    with pytest.raises(RequestError, match=r"no stage 'qaoa'.*open stages: vqe.*qpu stage open"):
        open_lease(stage="qaoa")


@pytest.mark.parametrize("qpu", ["other", ["other", "ibm_x"]])
def test_another_qpu_than_the_stages_is_refused(stage, qpu):
    with pytest.raises(RequestError, match=r"stage 'vqe' has QPU 'ibm_fez', not .*other"):
        open_lease(qpu, stage="vqe")


def test_the_variable_does_not_apply_to_other_qpus(stage):
    environ = {"QPU_STAGE": "vqe"}

    assert stage_to_join(None, None, environ) == stage
    assert stage_to_join("ibm_fez", None, environ) == stage
    assert stage_to_join(["ibm_fez", "other"], None, environ) == stage
    assert stage_to_join("other", None, environ) is None
    assert stage_to_join(None, None, {}) is None


def test_without_a_name_the_qpu_is_the_stages(stage, monkeypatch):
    monkeypatch.setenv("QPU_STAGE", "vqe")
    config = stage.folder.path.parent / "qrmi_config.json"
    entries = [
        {"name": name, "type": "ibm-quantum-compute-service", "environment": {}}
        for name in ("ibm_fez", "ibm_other")
    ]
    config.write_text(json.dumps({"resources": entries}))
    update_stage("vqe", lambda now: replace(now, config=str(config)))

    assert find_qpu(None).name == "ibm_fez"


def test_a_lease_of_a_stage_tells_children_to_join_it(stage, monkeypatch):
    with open_lease(stage="vqe") as lease:
        (member,) = stage.folder.members.iterdir()
        variables = lease.environment()

    assert variables["QPU_STAGE"] == "vqe"
    assert variables["QPU_STAGE_MEMBER"] == str(member)
    assert variables["ibm_fez_QRMI_JOB_ACQUISITION_TOKEN"] == "t-1"
    assert list(stage.folder.members.iterdir()) == []


@pytest.mark.parametrize("what", ["path", "stage", "environment"])
def test_a_folder_that_others_can_read_is_refused(stage, what):
    path = getattr(stage.folder, what)
    path.chmod(path.stat().st_mode | 0o040)

    with pytest.raises(RequestError, match=f"must not be accessible to other.*chmod go-rwx {path}"):
        open_lease(stage="vqe")


@pytest.mark.parametrize("what", ["path", "stage", "environment"])
def test_links_are_not_followed(stage, what):
    path = getattr(stage.folder, what)
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)

    with pytest.raises(RequestError, match="no link"):
        open_lease(stage="vqe")


@pytest.mark.parametrize("what", ["path", "stage", "environment"])
def test_another_users_stage_is_refused(stage, what, monkeypatch):
    path = getattr(stage.folder, what)
    if os.getuid() != 0:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        os.chown(path, 12345, -1)

    with pytest.raises(RequestError, match=r"belongs to user \d+. A stage can be used only by"):
        open_lease(stage="vqe")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "vqe"}', "nul"])
def test_a_damaged_stage_is_reported(stage, text):
    stage.folder.stage.write_text(text)

    with pytest.raises(ConfigError, match="not the file of a stage"):
        find_stage("vqe")
    assert list_stages() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "other"},
        {"lanes": "two"},
        {"idle_limit": "long"},
        {"created": None},
        {"generation": []},
        {"keeper": {}},
        {"openers": None},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_value_in_a_stages_file_is_reported(stage, wrong):
    document = json.loads(stage.folder.stage.read_text())
    stage.folder.stage.write_text(json.dumps(document | wrong))

    with pytest.raises(ConfigError, match="not the file of a stage"):
        find_stage("vqe")
    assert list_stages() == []


def test_a_keeper_never_sees_a_member_before_it_is_locked(stage, monkeypatch):
    """The keeper would take it for one that has died, and remove its file."""
    seen = []

    def create(path: Path) -> object:
        path.touch()
        seen.extend(stage.folder.members.glob("[!.]*"))
        path.unlink()
        return create_locked(path)

    monkeypatch.setattr("qrmi_workflows.lease.membership.create_locked", create)
    with open_lease(stage="vqe") as lease:
        (member,) = stage.folder.members.iterdir()
        assert lease.held.membership.file == member
        assert is_locked(member)
    assert seen == []
    assert list(stage.folder.members.iterdir()) == []


def test_more_lanes_than_the_stage_has_are_refused(stage, monkeypatch):
    monkeypatch.setenv("QPU_LANES", "3")

    with pytest.raises(RequestError, match=r"\$QPU_LANES=3: stage 'vqe' has 2 lanes"):
        open_lease(stage="vqe")
    assert list(stage.folder.members.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": StageState.ENDED, "reason": "closed."}, "has ended: closed. Open it again"),
        ({"id": "another"}, "was opened again since"),
    ],
)
def test_a_stage_that_has_ended_cannot_be_joined(stage, changes, reason, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.lease.open.stage_to_join", lambda *_: stage)
    update_stage("vqe", lambda now: replace(now, **changes))

    with pytest.raises(LeaseError, match=reason) as error:
        open_lease(stage="vqe")
    assert error.value.retryable


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keeper": None, "state": StageState.OPENING}, "its keeper has not started yet"),
        ({"keeper": replace(Owner.this_process(None), started=1)}, "its keeper has died"),
    ],
)
def test_a_wait_for_the_keeper_ends_in_time(stage, changes, reason):
    update_stage("vqe", lambda now: replace(now, **changes))

    with pytest.raises(LeaseError, match=f"{reason}.*QPU_STAGE_WAIT") as error:
        open_lease(stage="vqe")
    assert error.value.retryable


def test_a_keeper_on_another_host_lives_as_long_as_its_file_changes(stage, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.lease.membership.KEEPER_SECONDS", 0.2)
    elsewhere = replace(Owner.this_process(None), host="elsewhere")
    update_stage("vqe", lambda now: replace(now, keeper=elsewhere))
    stage.folder.alive.touch()
    joined = open_lease(stage="vqe")
    assert isinstance(joined.held.membership, Membership)

    with pytest.raises(LeaseError, match="its keeper has died"):
        joined.held.membership.await_newer(threading.Event(), is_session_ended=True)
    stage.folder.alive.touch()
    joined.held.require_open()
    joined.release()
