"""Which blocks a `QPUExecutor` cancels when it scales in."""

from __future__ import annotations

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider

from parsl_ext import LeaseLauncher, QPUExecutor
from qrmi_workflows.errors import RequestError


def manager(block: str, *, tasks: int = 0, idle: float = 0.0) -> dict[str, object]:
    return {"manager": f"m{block}", "block_id": block, "tasks": tasks, "idle_duration": idle,
            "active": True}  # fmt: skip


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> QPUExecutor:
    """An executor whose block 0 is starting, and the others idle, busy, and idle for longer."""
    executor = QPUExecutor(provider=LocalProvider(launcher=LeaseLauncher(qpu="q")))
    managers = [
        manager("1", idle=40),
        manager("2", tasks=1, idle=90),
        manager("3", idle=50),
        manager("3", idle=60),
    ]
    for block in "0123":
        executor._status[block] = JobStatus(JobState.RUNNING)
        executor.blocks_to_job_id[block] = f"j{block}"
        executor.job_ids_to_block[f"j{block}"] = block
    monkeypatch.setattr(executor, "connected_managers", lambda: managers)
    monkeypatch.setattr(executor, "_hold_block", lambda block: None)
    monkeypatch.setattr(executor.provider, "cancel", lambda jobs: [True] * len(jobs))
    return executor


@pytest.mark.parametrize(
    ("blocks", "seconds", "cancelled"),
    [
        (0, 30.0, []),
        (1, 30.0, ["3"]),
        (4, 30.0, ["3", "1"]),
        (4, 45.0, ["3"]),
        (4, 60.0, []),
    ],
)
def test_only_blocks_whose_workers_have_been_idle_are_cancelled(
    executor, blocks, seconds, cancelled
):
    assert executor.scale_in(blocks, max_idletime=seconds) == cancelled


def test_any_block_is_cancelled_if_no_idle_time_is_given(executor):
    assert sorted(executor.scale_in(4)) == ["0", "1", "2", "3"]


def test_blocks_without_a_lease_are_refused_unless_this_job_holds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for provider in (
        None,
        LocalProvider(),
        PBSProProvider(),
        LocalProvider(launcher=SrunLauncher()),
    ):
        with pytest.raises(RequestError, match="its launcher must be a `LeaseLauncher`"):
            QPUExecutor(provider=provider)
    assert QPUExecutor(provider=PBSProProvider(launcher=LeaseLauncher(qpu="q")))

    monkeypatch.setenv("QRMI_JOB_QPU_RESOURCES", "q")
    monkeypatch.setenv("QRMI_JOB_QPU_TYPES", "ibm-quantum-system")
    monkeypatch.setenv("q_QRMI_JOB_ACQUISITION_TOKEN", "t")
    assert QPUExecutor(provider=LocalProvider())
