"""`qpu stage`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qrmi_workflows.cli import main
from qrmi_workflows.lease.stage import Stage, StageState
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.state.process import Owner


@pytest.fixture
def qpu(monkeypatch, tmp_path, capsys):
    """Run `qpu stage`, with an empty state folder; return exit code, stdout and stderr."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))

    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["stage", *argv])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


@pytest.fixture
def stage(qpu) -> Stage:
    """A stage that has ended; nobody is asked about it."""
    ended = Stage(
        name="vqe", qpu="ibm_fez", type="t", id="0", created=0.0, keeper_job="17",
        state=StageState.ENDED, reason="closed", openers=("user",),
    )  # fmt: skip
    with StageFolder.of("vqe").locked():
        ended.save()
    return ended


def test_stages_are_listed(qpu, stage):
    code, shown, _ = qpu("list")

    heading, row = shown.splitlines()
    assert code == 0
    assert heading.split() == ["STAGE", "QPU", "STATE", "KEEPER", "OPENED", "REASON"]
    assert row.split()[:4] == ["vqe", "ibm_fez", "ended", "17"]
    assert row.endswith("closed")
    assert [each["reason"] for each in json.loads(qpu("list", "--json")[1])] == ["closed"]


def test_a_stage_that_is_not_ready_says_what_it_waits_for(qpu, stage):
    me = Owner.this_process(None)
    opening = replace(stage, state=StageState.OPENING, keeper_job=None, keeper=me, reason="")
    with stage.folder.locked():
        opening.save()

    assert qpu("list")[1].splitlines()[1].endswith("waiting for QPU 'ibm_fez'")
    assert "reason       waiting for QPU 'ibm_fez'" in qpu("show", "vqe")[1]


def test_without_stages_the_list_is_empty(qpu):
    assert json.loads(qpu("list", "--json")[1]) == []


def test_an_unknown_stage_is_an_invalid_request(qpu, stage):
    for argv in (("show", "vpe"), ("close", "vpe"), ("options", "vpe")):
        code, _, message = qpu(*argv)
        assert code == 2
        assert "no stage 'vpe'" in message


def test_closing_an_ended_stage_does_nothing(qpu, stage):
    assert qpu("close", "vqe")[:2] == (0, "stage vqe of ibm_fez: ended: closed\n")


def test_jobs_of_an_ended_stage_are_refused(qpu, stage, capsys):
    """With the same exit code before and after their submission."""
    code, _, message = qpu("options", "vqe")
    assert code == 1
    assert "stage 'vqe' has ended: closed; a job needs an open stage" in message

    with pytest.raises(SystemExit) as ended:
        main(["lease", "exec", "--stage", "vqe", "--", "true"])
    assert ended.value.code == 1
    assert "stage 'vqe' has ended: closed" in capsys.readouterr().err


def test_an_unsafe_folder_is_reported_once(qpu, stage, caplog):
    stage.folder.path.chmod(0o750)

    assert qpu("list")[0] == 0

    assert caplog.text.count("must not be accessible to other users") == 1


def test_the_keeper_of_an_earlier_opening_ends(qpu, stage):
    code, _, message = qpu("keep", "vqe", "--id", "1")

    assert code == 1
    assert "has been opened anew" in message


def test_a_closing_stage_is_shown_as_such(qpu, stage, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")  # no scheduler here
    with StageFolder.of("vqe").locked():
        replace(stage, state=StageState.READY, closing=True).save()

    code, shown, message = qpu("show", "vqe")

    assert code == 0
    assert "state        closing\n" in shown
    assert "opened by    user\n" in shown
    assert "cannot tell whether the keepers of open stages are alive" in caplog.text
    assert "cannot tell which jobs it has" in message
