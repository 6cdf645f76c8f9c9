"""Which blocks a `QPUExecutor` cancels when it scales in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider

from parsl_ext import LeaseLauncher, QPUExecutor
from parsl_ext.idle import IdleTimer
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


@pytest.fixture
def idle(executor: QPUExecutor, monkeypatch: pytest.MonkeyPatch) -> QPUExecutor:
    """The same executor, without calls, and with an idle time of zero."""
    monkeypatch.undo()
    monkeypatch.setattr(HighThroughputExecutor, "poll_facade", lambda _: None)
    monkeypatch.setattr(executor.provider, "min_blocks", 0)
    monkeypatch.setattr(executor, "_idle", IdleTimer(0))
    managers = {f"m{block}": manager(block) for block in "0123"}
    monkeypatch.setattr(executor, "connected_managers", lambda: list(managers.values()))
    monkeypatch.setattr(executor, "_hold_manager", lambda m: managers[m].update(active=False))
    return executor


def test_a_call_is_not_given_to_a_block_that_is_being_cancelled_as_idle(
    idle: QPUExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sent = Future[None]()

    def send(*_: object) -> Future[None]:
        events.append("sent")
        return sent

    call = threading.Thread(target=lambda: idle.submit_payload({}, b""))

    def outstanding(_: object) -> int:
        call.start()  # it comes just after this look
        call.join(0.2)
        return 0

    def cancel(jobs: Sequence[str]) -> list[bool]:
        events.append("cancelled")
        return [True] * len(jobs)

    monkeypatch.setattr(HighThroughputExecutor, "submit_payload", send)
    monkeypatch.setattr(HighThroughputExecutor, "outstanding", outstanding)
    monkeypatch.setattr(idle.provider, "cancel", cancel)

    idle.poll_facade()
    call.join()

    assert events == ["cancelled", "sent"]


def test_a_block_that_could_not_be_cancelled_is_cancelled_although_calls_wait(
    idle: QPUExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers take no more calls, and no other block is submitted while it seems to run."""
    asked: list[list[str]] = []

    def cancel(jobs: Sequence[str]) -> list[bool]:
        asked.append(sorted(jobs))
        return [len(asked) > 1 or job != "j2" for job in jobs]

    monkeypatch.setattr(idle.provider, "cancel", cancel)
    idle.poll_facade()
    assert idle.status_facade["2"].state is JobState.RUNNING

    idle._tasks[1] = Future()  # a call
    for _ in range(3):
        idle.poll_facade()

    assert asked == [["j0", "j1", "j2", "j3"], ["j2"]]
    assert idle.status_facade["2"].state is JobState.SCALED_IN
