"""Which processes of a stage are alive, and when the last of them has left."""

from __future__ import annotations

import pytest

from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.stages import members
from qrmi_workflows.stages.members import Members


@pytest.fixture
def folder(tmp_path, monkeypatch) -> StageFolder:
    """Return a stage's folder; its members are alive as long as they have a file."""
    folder = StageFolder(tmp_path)
    folder.members.mkdir()
    monkeypatch.setattr(members, "is_member_alive", lambda file: file.exists())
    monkeypatch.setattr(members, "_LOOKS_PAUSE", 0.0)
    return folder


@pytest.mark.parametrize("looks", [1, 3])
def test_that_the_last_has_left_is_said_once_however_often_one_looks(folder, looks):
    seen = Members(folder, report=print)
    file = folder.members / "one"
    file.touch()
    assert (seen.alive(), seen.have_left()) == (["one"], False)

    file.unlink()
    for _ in range(looks):
        assert seen.alive() == []

    assert [seen.have_left(), seen.have_left()] == [True, False]


def test_a_member_that_comes_after_the_last_has_left_is_there(folder):
    seen = Members(folder, report=print)
    (folder.members / "one").touch()
    seen.alive()
    (folder.members / "one").unlink()
    seen.alive()

    (folder.members / "two").touch()

    assert (seen.alive(), seen.have_left()) == (["two"], False)
