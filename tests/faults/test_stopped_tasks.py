"""Stopped tasks: nothing is paid for twice, and nothing keeps running unnoticed."""

from __future__ import annotations

import subprocess
import sys
import threading

import psutil
import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.errors import ConfigError, LeaseError, PayloadError, TaskCancelledError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.tasks.future import TaskFuture


def submit_one(lease: Lease, **options) -> TaskFuture:
    """Submit a task and wait until the vendor has accepted it."""
    future = lease.submit(bell(), **options)
    wait_until(lambda: future.task_id, "the task's id")
    return future


def test_a_task_that_completes_while_it_is_stopped_keeps_its_result(emulator, counted, monkeypatch):
    """It completes between the last poll and the request to cancel it."""
    with open_lease("ibm_slow", step="s") as lease:
        stop = lease.resource.task_stop

        def stop_late(task_id: str) -> None:
            wait_until(
                lambda: str(lease.resource.task_status(task_id)) == "TaskStatus.Completed",
                "the end of the task",
            )
            stop(task_id)

        monkeypatch.setattr(lease.resource, "task_stop", stop_late)
        future = submit_one(lease)
        future.cancel()
        assert future.result(timeout=60).task_id == future.task_id

    with open_lease("ibm_slow", step="s") as lease:
        assert lease.run(bell()).task_id == future.task_id
    assert counted()["tasks accepted"] == 1


def test_a_rerun_waits_for_a_task_that_could_not_be_stopped(emulator, counted, fault):
    # Not the submission, whose route has no slash at its end.
    fault("status", route="* */jobs/*", status=503)
    with open_lease("ibm_slow", step="s") as lease:
        future = submit_one(lease)
        future.cancel()
        with pytest.raises(TaskCancelledError, match="may still be running"):
            future.result(timeout=60)
        emulator.control.ask("DELETE", "/faults")
        (record,) = Journal().step("s").records()
        assert record.state is RecordState.SUBMITTED

        with open_lease("ibm_slow", step="s") as again:
            lease._journal.close(lease.step)
            assert again.run(bell()).task_id == future.task_id
    assert counted()["tasks accepted"] == 1


def test_a_rerun_submits_a_task_that_was_cancelled_meanwhile(emulator, counted, pause):
    pause("ibm_with_cancel")
    with open_lease("ibm_with_cancel", step="s") as lease:
        future = submit_one(lease, on_stop="leave")
        future.cancel()
        with pytest.raises(TaskCancelledError, match="left for a rerun"):
            future.result(timeout=60)
        lease.resource.task_stop(future.task_id)
    pause("ibm_with_cancel", "online")

    with open_lease("ibm_with_cancel", step="s") as lease:
        assert lease.run(bell()).task_id != future.task_id
    assert counted()["tasks accepted"] == 2


def test_a_command_whose_supervisor_was_killed_leaves_its_task(
    emulator, counted, pause, payload_file, tmp_path
):
    """SIGTERM then tells the command that its lease has no holder, not that the step is stopped."""
    qpu = [sys.executable, "-m", "qrmi_workflows"]
    run = [*qpu, "run", str(payload_file), "--qpu", "ibm_slow", "-o", str(tmp_path / "result")]
    pause("ibm_slow")
    with subprocess.Popen([*qpu, "lease", "exec", "--qpu", "ibm_slow", "--", *run]) as supervisor:
        wait_until(lambda: [r.state for r in Journal().records()] == ["submitted"], "the task's id")
        (command,) = psutil.Process(supervisor.pid).children()
        supervisor.kill()
    command.wait(60)
    pause("ibm_slow", "online")

    subprocess.run(run, check=True)

    assert (counted()["tasks accepted"], counted()["tasks cancelled"]) == (1, 0)
    assert counted()["sessions open"] == 0


def test_a_variable_leaves_the_tasks_of_a_process_for_a_rerun(
    emulator, counted, pause, monkeypatch
):
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    pause("ibm_with_cancel")
    with open_lease("ibm_with_cancel", step="s") as lease:
        left, cancelled = submit_one(lease), lease.submit(bell(7), on_stop="cancel")
        wait_until(lambda: cancelled.task_id, "the second task's id")
        for future in (left, cancelled):
            future.cancel()
        with pytest.raises(TaskCancelledError, match="left for a rerun"):
            left.result(timeout=60)
        with pytest.raises(TaskCancelledError, match="was stopped"):
            cancelled.result(timeout=60)
        pause("ibm_with_cancel", "online")
        lease._journal.close(lease.step)

        with open_lease("ibm_with_cancel", step="s") as again:
            assert again.run(bell()).task_id == left.task_id
    assert counted()["tasks accepted"] == 2


def test_a_wrong_variable_is_refused_before_a_session_opens(emulator, counted, monkeypatch):
    monkeypatch.setenv("QPU_ON_STOP", "keep")

    with pytest.raises(ConfigError, match="QPU_ON_STOP='keep'"):
        open_lease("ibm_slow", step="s")

    assert counted()["sessions opened"] == 0


def test_an_error_in_on_state_does_not_lose_the_result(quick, caplog):
    def broken(*_: object) -> None:
        raise ValueError("the caller's own")

    assert quick.run(bell(), on_state=broken).counts() is not None
    assert "the caller's own" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, PayloadError])
def test_an_error_among_the_payloads_of_map_cancels_the_tasks(emulator, counted, pause, error):
    """The error comes from the iterator, or from an invalid payload."""

    def payloads():
        yield bell(1)
        yield bell(2)
        if error is PayloadError:
            yield {"no": "payload"}
        raise RuntimeError("the caller's own")

    pause("ibm_slow")
    with open_lease("ibm_slow") as lease, pytest.raises(error):
        lease.map(payloads())
    pause("ibm_slow", "online")
    wait_until(lambda: counted()["tasks finished"] == counted()["tasks accepted"], "their ends")
    assert counted()["tasks completed"] == 0


def test_closing_the_results_of_map_cancels_the_rest(emulator, counted):
    with open_lease("ibm_slow") as lease:
        results = lease.map([bell(shots) for shots in range(1, 13)])
        next(results)
        results.close()
    assert counted()["tasks completed"] <= 5  # at most those that were in a lane with the first


def test_nothing_is_submitted_to_a_lease_that_is_being_released(quick, monkeypatch):
    """A submission that had found the lease open would otherwise wait forever."""
    quick.run(bell())
    started, released = threading.Event(), threading.Event()
    open_pool = Lease._open_pool

    def slowly(self):
        pool = open_pool(self)
        started.set()
        released.wait(1.0)
        return pool

    monkeypatch.setattr(Lease, "_open_pool", slowly)
    outcomes: list[object] = []

    def submit() -> None:
        try:
            outcomes.append(quick.submit(bell()))
        except LeaseError as error:
            outcomes.append(error)

    submitting = threading.Thread(target=submit)
    submitting.start()
    started.wait()
    quick.release()
    released.set()
    submitting.join()

    (outcome,) = outcomes
    assert isinstance(outcome, LeaseError) or outcome.done()


def test_all_futures_end_when_threads_submit_cancel_and_release_at_once(emulator, counted):
    for _ in range(4):
        lease = open_lease("ibm_quick")
        futures: list[TaskFuture] = []

        def work(lease: Lease = lease, futures: list[TaskFuture] = futures) -> None:
            try:
                for shots in range(1, 20):
                    futures.append(lease.submit(bell(shots)))
                    if shots % 3 == 0:
                        futures[-2].cancel()
            except LeaseError:
                return

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        wait_until(lambda futures=futures: futures, "the first submission")
        lease.release()
        for worker in workers:
            worker.join()
        for future in futures:
            assert future.cancelled() or future.exception(timeout=60) or future.result()
    assert counted()["sessions open"] == 0


def test_cancelling_a_waiting_future_needs_no_vendor(emulator, counted):
    with open_lease("ibm_slow") as lease:
        futures = [lease.submit(bell(shots)) for shots in range(1, 15)]
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        assert not futures[-1].running()
        for future in futures[:-1]:
            future.cancel()
    assert counted()["tasks accepted"] <= 7


def test_a_finished_task_cannot_be_cancelled(quick):
    future = quick.submit(bell())
    future.result()

    assert not future.cancel()
