"""Blocks whose QPU has gone: what they are told, what they leave, what the next ones hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus

from parsl_ext import QPUExecutor, QPUSlurmProvider
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.providers.moves import BlockMoves
from parsl_ext.retries import qpu_retry_handler
from qrmi_workflows.errors import RequestError, StepMovedError

SAID = {"left": ["ibm_fez"], "qpu": "ibm_torino", "rest": ["emulated:fez"], "reason": "offline"}


@pytest.fixture
def moves() -> BlockMoves:
    return BlockMoves(["ibm_torino", "emulated:fez"], is_in_stage=False)


def test_a_block_without_a_fallback_is_told_nothing(tmp_path: Path):
    assert BlockMoves([], is_in_stage=False).options(tmp_path / "f") == []


def test_the_next_blocks_hold_the_qpu_that_one_has_asked_for(moves: BlockMoves, tmp_path: Path):
    file = tmp_path / "block.moved"
    assert moves.options(file) == ["--fallback=ibm_torino,emulated:fez", f"--move-file={file}"]
    moves.expect("7", file)
    assert moves.find() == []
    file.write_text(json.dumps(SAID))

    assert moves.find() == ["7"]

    assert moves.moved is not None
    assert moves.moved.qpu == "ibm_torino"
    assert moves.find() == [], "a block is reported once"
    assert moves.options(file)[:2] == ["--fallback=emulated:fez", "--moved-from=ibm_fez"]


def test_a_block_that_is_late_to_say_so_moves_nothing_back(moves: BlockMoves, tmp_path: Path):
    further = {"left": ["ibm_fez", "ibm_torino"], "qpu": "ibm_kyiv", "rest": [], "reason": "off"}
    for job, said in (("1", further), ("2", SAID)):
        (tmp_path / job).write_text(json.dumps(said))
        moves.expect(job, tmp_path / job)
        assert moves.find() == [job]

    assert moves.moved is not None
    assert moves.moved.qpu == "ibm_kyiv"


def test_the_blocks_of_a_stage_move_only_by_themselves(tmp_path: Path):
    moves = BlockMoves(["ibm_torino"], is_in_stage=True)

    assert moves.options(tmp_path / "f") == ["--fallback=ibm_torino"]


def test_blocks_with_several_qpus_can_have_no_fallback(moves: BlockMoves):
    with pytest.raises(RequestError, match="several QPUs can have no fallback"):
        moves.require_valid(["ibm_fez", "FRESNEL"])


def test_a_launcher_passes_its_fallback_on_unless_the_provider_has_one():
    launcher = LeaseLauncher("ibm_fez", fallback=["ibm_torino"]).for_qpu("ibm_fez")

    own = launcher.wrap("work", 1, 1, "", alive=None)
    other = launcher.wrap("work", 1, 1, "", alive=None, fallback=["--fallback=ibm_kyiv"])

    assert "--qpu=ibm_fez --fallback=ibm_torino -- bash" in own
    assert "--qpu=ibm_fez --fallback=ibm_kyiv -- bash" in other


def test_a_call_that_goes_on_in_another_block_costs_no_retry():
    assert qpu_retry_handler(StepMovedError("gone", "ibm_fez", "ibm_torino"), None) == 0.0


def test_a_block_whose_qpu_has_gone_ends_after_its_last_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A call that is lost with its block costs a retry; one that moves costs none."""
    (tmp_path / "site.toml").write_text("[qpus.ibm_fez]\n[qpus.ibm_torino]\n")
    provider = QPUSlurmProvider(qpu="ibm_fez", site=str(tmp_path / "site.toml"))
    executor = QPUExecutor(provider=provider)
    managers = {}
    for block, calls in (("1", 1), ("2", 1)):
        executor._status[block] = JobStatus(JobState.RUNNING)
        executor.blocks_to_job_id[block] = f"j{block}"
        executor.job_ids_to_block[f"j{block}"] = block
        managers[block] = {
            "manager": block, "block_id": block, "tasks": calls, "idle_duration": 0.0,
            "active": True,
        }  # fmt: skip
    cancelled: list[str] = []

    def cancel(jobs: list[str]) -> list[bool]:
        cancelled.extend(jobs)
        return [True] * len(jobs)

    monkeypatch.setattr(HighThroughputExecutor, "poll_facade", lambda _: provider.status([]))
    monkeypatch.setattr(executor, "connected_managers", lambda: list(managers.values()))
    monkeypatch.setattr(executor, "_hold_manager", lambda m: managers[m].update(active=False))
    monkeypatch.setattr(provider, "cancel", cancel)
    (tmp_path / "said").write_text(json.dumps(SAID))
    provider._moves.expect("j2", tmp_path / "said")

    executor.poll_facade()

    assert [each["active"] for each in managers.values()] == [True, False]
    assert cancelled == []

    managers["2"]["tasks"] = 0
    executor.poll_facade()
    executor.poll_facade()

    assert cancelled == ["j2"]
