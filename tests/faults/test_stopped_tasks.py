"""Tasks that are stopped: what was paid for is not paid for again, and nothing runs unseen."""

from __future__ import annotations

import threading

import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.errors import LeaseError, PayloadError, TaskCancelledError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.tasks.pool import TaskFuture


def submitted(lease: Lease, **options) -> TaskFuture:
    """Submit a task, and wait until the vendor has it."""
    future = lease.submit(bell(), **options)
    wait_until(lambda: future.task_id, "the task's id")
    return future


def test_a_task_that_completes_while_it_is_stopped_is_had_and_not_paid_for_again(
    emulator, counted, monkeypatch
):
    """It ends between the last question and the request to stop it."""
    with open_lease("ibm_slow", step="s") as lease:
        stop = lease.resource.task_stop

        def too_late(task_id: str) -> None:
            wait_until(
                lambda: str(lease.resource.task_status(task_id)) == "TaskStatus.Completed",
                "the end of the task",
            )
            stop(task_id)

        monkeypatch.setattr(lease.resource, "task_stop", too_late)
        future = submitted(lease)
        future.cancel()
        assert future.result(timeout=60).task_id == future.task_id

    with open_lease("ibm_slow", step="s") as lease:
        assert lease.run(bell()).task_id == future.task_id
    assert counted()["tasks accepted"] == 1


def test_a_task_that_could_not_be_stopped_is_waited_for_by_the_rerun(emulator, counted, fault):
    with open_lease("ibm_slow", step="s") as lease:
        future = submitted(lease)
        fault("status", route="* */jobs/*", status=503)
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


def test_a_task_that_was_cancelled_while_nobody_looked_is_submitted_again(emulator, counted):
    with open_lease("ibm_slow", step="s") as lease:
        future = submitted(lease, on_stop="leave")
        future.cancel()
        with pytest.raises(TaskCancelledError, match="left for a rerun"):
            future.result(timeout=60)
        lease.resource.task_stop(future.task_id)

    with open_lease("ibm_slow", step="s") as lease:
        assert lease.run(bell()).task_id != future.task_id
    assert counted()["tasks accepted"] == 2


def test_what_on_state_raises_costs_no_result(quick, caplog):
    def broken(*_: object) -> None:
        raise ValueError("the caller's own")

    assert quick.run(bell(), on_state=broken).counts() is not None
    assert "the caller's own" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, PayloadError])
def test_payloads_that_end_in_an_error_leave_nothing_in_flight(emulator, counted, error):
    """Raised by who makes them, or because one of them is none."""

    def payloads():
        yield bell(1)
        yield bell(2)
        if error is PayloadError:
            yield {"no": "payload"}
        raise RuntimeError("the caller's own")

    with open_lease("ibm_slow") as lease, pytest.raises(error):
        lease.map(payloads())
    assert counted()["tasks completed"] == 0


def test_who_takes_no_more_results_of_a_map_cancels_the_rest(emulator, counted):
    with open_lease("ibm_slow") as lease:
        results = lease.map([bell(shots) for shots in range(1, 13)])
        next(results)
        results.close()
    assert counted()["tasks completed"] <= 5  # those that were in a lane beside the first


def test_nothing_is_submitted_to_a_lease_that_is_being_released(quick, monkeypatch):
    """A submission that had seen the lease open waited for ever."""
    quick.run(bell())
    begun, released = threading.Event(), threading.Event()
    open_pool = Lease._open_pool

    def slowly(self):
        pool = open_pool(self)
        begun.set()
        released.wait(1.0)
        return pool

    monkeypatch.setattr(Lease, "_open_pool", slowly)
    said: list[object] = []

    def submit() -> None:
        try:
            said.append(quick.submit(bell()))
        except LeaseError as error:
            said.append(error)

    submitting = threading.Thread(target=submit)
    submitting.start()
    begun.wait()
    quick.release()
    released.set()
    submitting.join()

    (answer,) = said
    assert isinstance(answer, LeaseError) or answer.done()


def test_threads_that_submit_cancel_and_release_at_once_end_all_futures(emulator, counted):
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


def test_a_future_that_waits_for_its_turn_is_cancelled_without_the_vendor(emulator, counted):
    with open_lease("ibm_slow") as lease:
        futures = [lease.submit(bell(shots)) for shots in range(1, 15)]
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        assert not futures[-1].running()
        for future in futures[:-1]:
            future.cancel()
    assert counted()["tasks accepted"] <= 7


def test_a_task_that_is_done_cannot_be_cancelled(quick):
    future = quick.submit(bell())
    future.result()

    assert not future.cancel()
