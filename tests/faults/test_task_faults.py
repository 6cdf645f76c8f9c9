"""No task that was paid for is lost or paid for twice."""

import signal
import subprocess
import sys
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.errors import (
    JournalError,
    TaskCancelledError,
    TaskFailedError,
)
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.tasks.lanes import LaneSemaphore


def records(step: str) -> list:
    return Journal().step(step).records()


def run_cli(*argv: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", *argv],
        capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def start_run(payload_file, output, *options: str) -> subprocess.Popen:
    """Start `qpu run` of a long task and wait until the task is running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qrmi_workflows", "run", str(payload_file), "-o", str(output),
         "--qpu", "ibm_slower", *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any(line.endswith(": Running\n") for line in process.stderr)
    return process


def test_a_task_runs_and_is_recorded_with_its_result(quick):
    result = quick.run(bell())

    (record,) = records("quick")
    assert record.state is RecordState.COMPLETED
    assert record.task_id == result.task_id
    assert record.result.decoded() == result


def test_a_task_has_ended_before_another_one_can_take_its_lane(quick, monkeypatch):
    freed, hold = [], LaneSemaphore.hold_for_task

    @contextmanager
    def note_when_freed(*args):
        with hold(*args):
            yield
        freed.append(datetime.now(UTC))

    monkeypatch.setattr(LaneSemaphore, "hold_for_task", note_when_freed)
    result = quick.run(bell())

    assert datetime.fromisoformat(result.completed) <= freed[0]


def test_a_rerun_finds_both_of_two_identical_tasks(emulator, counted):
    def step() -> list[str]:
        with open_lease("ibm_quick", step="twice") as lease:
            return [lease.run(bell()).task_id for _ in range(2)]

    first, again = step(), step()

    assert len(set(first)) == 2
    assert again == first
    assert counted()["tasks accepted"] == 2


def test_without_a_step_name_every_run_is_new(emulator, counted):
    for _ in range(2):
        with open_lease("ibm_quick") as lease:
            lease.run(bell())

    assert counted()["tasks accepted"] == 2


def test_a_requeued_slurm_job_finds_the_tasks_of_each_of_its_commands(
    emulator, counted, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def job() -> list[str]:
        ids = []
        for _ in range(2):  # a batch script that runs the same command twice on purpose
            with open_lease("ibm_quick") as lease:
                ids.append(lease.run(bell()).task_id)
        return ids

    first = job()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = job()

    assert again == first
    assert len(set(first)) == counted()["tasks accepted"] == 2


def test_after_sigkill_a_rerun_re_attaches(emulator, counted, payload_file, tmp_path):
    output = tmp_path / "result.json"
    process = start_run(payload_file, output)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    again = run_cli("run", str(payload_file), "-o", str(output), "--qpu", "ibm_slower")

    assert again.returncode == 0, again.stderr
    assert counted()["tasks accepted"] == 1
    assert counted()["sessions open"] == 0  # the rerun reaped what SIGKILL left
    assert QuantumResult.load(output).counts()


def test_qpu_run_runs_again_after_its_result_was_written(counted, payload_file, tmp_path):
    output = tmp_path / "result.json"
    argv = ("run", str(payload_file), "-o", str(output), "--qpu", "ibm_quick")

    assert run_cli(*argv).returncode == run_cli(*argv).returncode == 0
    assert counted()["tasks accepted"] == 2


def test_sigterm_cancels_the_task_and_the_rerun_submits_it_again(
    emulator, counted, payload_file, tmp_path
):
    output = tmp_path / "result.json"
    process = start_run(payload_file, output)

    process.terminate()

    assert process.wait(timeout=60) == 143
    process.stderr.close()
    assert counted()["tasks cancelled"] == 1
    assert counted()["sessions open"] == 0
    assert not output.exists()
    again = run_cli("run", str(payload_file), "-o", str(output), "--qpu", "ibm_slower")
    assert again.returncode == 0, again.stderr
    assert counted()["tasks accepted"] == 2


def test_a_rerun_finds_a_task_that_was_left_running(
    emulator, counted, payload_file, tmp_path, monkeypatch
):
    with open_lease("ibm_slower") as lease:
        for name, value in lease.environment().items():
            monkeypatch.setenv(name, value)
        output = tmp_path / "result.json"
        process = start_run(payload_file, output, "--on-stop", "leave")
        process.terminate()
        assert process.wait(timeout=60) == 143
        process.stderr.close()

        again = run_cli("run", str(payload_file), "-o", str(output), "--qpu", "ibm_slower")

    assert again.returncode == 0, again.stderr
    assert counted()["tasks accepted"] == 1
    assert counted()["tasks cancelled"] == 0


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_transient_errors_lose_no_result(quick, fault, counted, status):
    fault("status", route="GET */jobs/*", status=status, count=3)

    assert quick.run(bell()).task_id

    assert counted()["tasks accepted"] == 1
    assert counted()["tasks cancelled"] == 0


@pytest.mark.parametrize("kind", ["drop", "status"])
def test_a_storage_that_fails_for_a_moment_loses_no_result(emulator, fault, counted, kind):
    """The client asks it three times before it gives up."""
    fault(kind, route="GET */results_*", status=503, count=4)

    with open_lease("ibm_system", step="storage") as lease:
        assert lease.run(bell()).task_id

    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("kind", ["drop", "malformed"])
def test_truncated_answers_lose_no_result(quick, fault, counted, kind):
    fault(kind, route="GET */jobs/*", count=3)

    assert quick.run(bell()).task_id
    assert counted()["tasks accepted"] == 1


def test_a_failed_task_says_why_and_is_not_submitted_again(emulator, counted):
    invalid = bell()
    invalid["parameters"]["pubs"][0][0] = (
        "OPENQASM 3.0; bit[1] c; array[int[8], 2] nonsense; c[0] = measure $0;"
    )

    def step() -> None:
        with open_lease("ibm_fez", step="invalid") as lease:
            lease.run(invalid)

    with pytest.raises(TaskFailedError) as first:
        step()
    with pytest.raises(TaskFailedError, match="qpu journal prune --step 'invalid'"):
        step()

    assert "failed at the vendor" in str(first.value)
    assert first.value.task_id
    assert counted()["tasks accepted"] == 1


def test_a_task_cancelled_at_the_vendor_is_submitted_by_the_rerun(emulator, counted, pause):
    pause("ibm_with_cancel")
    with open_lease("ibm_with_cancel", step="cancelled") as lease:
        future = lease.submit(bell())
        wait_until(lambda: future.task_id, "the task's id")
        lease.resource.task_stop(future.task_id)
        with pytest.raises(TaskCancelledError, match="cancelled at the vendor"):
            future.result(timeout=60)

        assert records("cancelled")[0].retryable


def test_a_task_that_the_vendor_forgot_is_submitted_again(emulator, fault, counted, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow", step="forgotten") as lease:
        lease.submit(bell(), on_stop="leave")
        wait_until(lambda: any(record.task_id for record in records("forgotten")), "the task's id")
        lease.release()
    pause("ibm_slow", "online")
    # For the question whether the orphaned lease is still wanted, and for the rerun's own.
    fault("status", route="GET */jobs/*", status=404, count=2)

    with open_lease("ibm_slow", step="forgotten") as lease:
        assert lease.run(bell()).task_id

    assert counted()["tasks accepted"] == 2


def test_as_many_tasks_are_in_flight_as_the_qpu_has_lanes(emulator, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow") as lease:
        for shots in range(1, 9):
            lease.submit(bell(shots))

        def in_flight() -> int:
            tasks = emulator.counters()["qpus"]["ibm_slow"]["tasks"]
            return tasks["queued"] + tasks["running"]

        wait_until(lambda: in_flight() == 5, "five tasks in flight")
        assert all(in_flight() <= 5 for _ in range(50))
        lease.release()


def test_results_come_in_the_order_of_the_payloads(quick):
    payloads = [bell(shots) for shots in range(1, 21)]

    results = list(quick.map(payloads))

    assert len({result.task_id for result in results}) == 20
    from qrmi_workflows import Payload

    digests = [Payload.from_content(payload).digest for payload in payloads]
    assert [result.payload_digest for result in results] == digests


def test_a_future_that_is_cancelled_cancels_its_task(emulator, counted, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow") as lease:
        future = lease.submit(bell())
        wait_until(lambda: future.task_id, "the task's id")

        assert future.cancel()

        with pytest.raises((CancelledError, TaskCancelledError)):
            future.result(timeout=60)
    assert counted()["tasks cancelled"] == 1


def test_leaving_the_block_normally_awaits_the_tasks(emulator):
    with open_lease("ibm_quick") as lease:
        futures = [lease.submit(bell(shots)) for shots in range(1, 8)]

    assert all(future.result(timeout=0) for future in futures)


def test_nothing_is_submitted_if_the_journal_cannot_be_written(
    emulator, counted, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "file"))

    with (
        open_lease("ibm_quick", step="s") as lease,
        pytest.raises(JournalError, match="QPU_STATE"),
    ):
        lease.run(bell())

    assert counted()["tasks accepted"] == 0
    assert counted()["sessions open"] == 0


def test_a_record_of_a_newer_version_is_left_alone(quick):
    quick.run(bell())
    (path,) = Journal().step("quick").folder.glob("*.json")
    newer = path.read_text().replace('"version": 1', '"version": 2')
    path.write_text(newer)
    quick.release()

    with (
        open_lease("ibm_quick", step="quick") as lease,
        pytest.raises(JournalError, match="version 2"),
    ):
        lease.run(bell())
    assert path.read_text() == newer


@pytest.mark.root
def test_a_full_disk_does_not_lose_a_result_in_memory(emulator, counted, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        monkeypatch.setenv("QPU_STATE", str(disk / "state"))
        with open_lease("ibm_slow", step="full") as lease:
            future = lease.submit(bell())
            wait_until(lambda: future.task_id, "the task's id")
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"x" * 1024)

            assert future.result(timeout=60).counts()
            with pytest.raises(JournalError, match="No space left"):
                lease.run(bell(shots=7))
    finally:
        subprocess.run(["umount", disk], check=True)

    assert counted()["tasks accepted"] == 1
    assert counted()["sessions open"] == 0


def test_map_submits_before_the_first_result_is_requested(quick, counted):
    results = quick.map([bell(shots) for shots in range(1, 4)])
    wait_until(lambda: counted()["tasks accepted"] == 3, "the three tasks")

    assert len(list(results)) == 3


def test_the_vendor_tells_the_lanes_if_the_site_does_not(emulator, monkeypatch, tmp_path):
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "absent.toml"))
    with open_lease("ibm_system") as lease:
        lease.submit(bell())

        assert lease.held.lanes.count == 3
