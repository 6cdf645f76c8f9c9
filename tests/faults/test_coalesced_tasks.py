"""Tasks that several payloads share: refused, failed, cancelled, lost, and killed in each state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from qrmi_workflows import Coalesce, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    JournalError,
    TaskCancelledError,
    TaskFailedError,
    UndecodedResultError,
)
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.vendors.ibm import coalescing

CONFIG = """
[qpus.ibm]
type = "ibm-quantum-compute-service"
execution_seconds = 0.05
lanes = 2

[qpus.ibm_slow]
type = "ibm-quantum-compute-service"
execution_seconds = 1.0
lanes = 2

[qpus.ibm_system]
type = "ibm-quantum-system"
execution_seconds = 0.05
lanes = 2
server = {finished_jobs_hold_lanes = true}
"""
WORDS = ("01", "10", "11")
BAD = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; h $400; c[0] = measure $400;'


def word(bits: str) -> dict[str, Any]:
    """Return a payload that gives these bits in every shot."""
    lines = [f"x ${rank};" for rank, bit in enumerate(reversed(bits)) if bit == "1"]
    lines += [f"c[{rank}] = measure ${rank};" for rank in range(len(bits))]
    circuit = "\n".join(['OPENQASM 3.0; include "stdgates.inc";', f"bit[{len(bits)}] c;", *lines])
    return {"program_id": "sampler", "parameters": {"pubs": [[circuit, None, 2]]}}


@pytest.fixture(scope="module")
def shared_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("coalesced")
    (folder / "emulator.toml").write_text(CONFIG)
    (folder / "site.toml").write_text("")
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


def run_all(qpu: str = "ibm", **options: Any) -> list[Any]:
    """Run the step: all payloads, as one task if possible; return the counts."""
    with open_lease(qpu, step="s") as lease:
        results = list(lease.map([word(bits) for bits in WORDS], coalesce=True, **options))
    return [result.counts() for result in results]


RIGHT = [{bits: 2} for bits in WORDS]


def states() -> list[str]:
    return [str(record.state) for record in Journal().step("s").records()]


def leftovers() -> list[Path]:
    return list((Journal().folder / "coalesced").glob("*"))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_payloads_that_are_refused_together_go_alone(counted, fault, status, caplog):
    fault("status", route="POST */jobs*", status=status, count=1)

    assert run_all() == RIGHT
    assert counted()["tasks accepted"] == 3
    assert "refused a task of 3 payloads; submitting each of them alone" in caplog.text
    assert not leftovers()


def together(count: int) -> Coalesce:
    """Let so many payloads wait for each other, however slowly they are submitted."""
    return Coalesce(max_pubs=count, wait=60)


def submit_with_a_bad_one() -> list[Any]:
    """Submit the payloads and one that fails at the vendor; return results and errors."""
    bad = {"program_id": "sampler", "parameters": {"pubs": [[BAD, None, 2]]}}
    with open_lease("ibm", step="s", coalesce=together(4)) as lease:
        futures = [lease.submit(each) for each in (*map(word, WORDS), bad)]
        return [future.exception() or future.result() for future in futures]


def test_after_a_task_has_failed_a_rerun_submits_each_payload_alone(counted):
    """Which payload the vendor could not run is not known, and the others must not suffer."""
    errors = submit_with_a_bad_one()
    assert {type(error) for error in errors} == {TaskFailedError}
    assert "4 payloads shared this task. Rerun their steps" in str(errors[0])
    assert (counted()["tasks accepted"], states()) == (1, ["failed"] * 4)
    assert not leftovers()

    *results, error = submit_with_a_bad_one()
    assert [result.counts() for result in results] == RIGHT
    assert isinstance(error, TaskFailedError)
    assert counted()["tasks accepted"] == 5

    *results, error = submit_with_a_bad_one()
    assert "recorded by an earlier run" in str(error)
    assert counted()["tasks accepted"] == 5, "now it is known which one fails"


def test_one_cancelled_payload_does_not_stop_the_others(counted, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow", step="s", coalesce=together(3)) as lease:
        first, *others = [lease.submit(word(bits)) for bits in WORDS]
        wait_until(lambda: first.task_id, "the submission")
        first.cancel()

        with pytest.raises(TaskCancelledError, match="goes on: other payloads share it"):
            first.result()
        pause("ibm_slow", "online")
        assert [future.result().counts() for future in others] == RIGHT[1:]

    assert states() == ["completed"] * 3
    assert run_all("ibm_slow") == RIGHT, "the part of the cancelled one is in the journal"
    assert counted()["tasks accepted"] == 1


def test_when_all_payloads_are_cancelled_the_task_is(counted, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow", step="s", coalesce=together(3)) as lease:
        futures = [lease.submit(word(bits)) for bits in WORDS]
        wait_until(lambda: futures[0].task_id, "the submission")
        for future in futures:
            future.cancel()
        for future in futures:
            assert isinstance(future.exception(), TaskCancelledError)
    ended = counted()
    assert ended["tasks accepted"] == ended["tasks cancelled"] == 1

    pause("ibm_slow", "online")
    assert run_all("ibm_slow") == RIGHT
    assert counted()["tasks accepted"] == 2, "together again"


def test_one_that_waits_for_a_lane_can_be_cancelled(counted):
    with open_lease("ibm", step="s", coalesce=True) as lease:
        with ExitStack() as lanes:
            for _ in range(lease.held.lanes.count):
                lanes.enter_context(lease.held.lanes.hold_for_task())
            first, *others = [lease.submit(word(bits)) for bits in WORDS]
            wait_until(first.running, "the look-up in the journal")
            first.cancel()
            with pytest.raises(TaskCancelledError):
                first.result(timeout=60)
        assert [future.result().counts() for future in others] == RIGHT[1:]
    assert counted()["tasks accepted"] == 1


def test_after_a_lost_answer_all_payloads_are_ambiguous(counted, fault):
    fault("drop", route="POST */jobs*", when="after", count=1)
    with open_lease("ibm", step="s", coalesce=together(3)) as lease:
        futures = [lease.submit(word(bits)) for bits in WORDS]
        errors = [future.exception() for future in futures]
    assert {type(error) for error in errors} == {AmbiguousTaskError}
    assert len({str(error) for error in errors}) == 1
    assert "a task of 3 payloads, of step 's'" in str(errors[0])

    with pytest.raises(AmbiguousTaskError):
        run_all()
    assert counted()["tasks accepted"] == 1
    assert run_all(on_ambiguous="resubmit") == RIGHT
    assert counted()["tasks accepted"] == 2


def test_a_result_that_cannot_be_split_is_kept_and_split_by_a_later_release(counted, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(coalescing, "split", lambda *_: [][1])
        with pytest.raises(UndecodedResultError) as caught:
            run_all("ibm_system")
        with pytest.raises(UndecodedResultError):
            run_all("ibm_system")
    assert caught.value.result.unsplit is not None

    assert run_all("ibm_system") == RIGHT
    assert counted()["tasks accepted"] == 1


PROGRAM = """
import json, os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from test_coalesced_tasks import run_all, submit_with_a_bad_one
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.journal.coalesced import CoalescedEntry
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.tasks.deletion import TaskDeletions

def dies(owner, name, after, calls):
    inner = getattr(owner, name)
    left = [calls]
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = inner(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    setattr(owner, name, call)

qpu, owner, name, after, calls, *bad = sys.argv[1:]
owners = {
    "entry": Entry, "coalesced": CoalescedEntry, "resource": QRMIResource,
    "deletions": TaskDeletions,
}
dies(owners[owner], name, after == "after", int(calls))
print(json.dumps(submit_with_a_bad_one() if bad else run_all(qpu)))
"""
DEATHS = [
    ("coalesced", "write", "after", 1, 1),  # the task's record, which no payload's names yet
    ("entry", "share", "before", 2, 1),
    ("entry", "share", "after", 3, 1),
    ("coalesced", "submitted", "after", 1, 1),
    ("resource", "task_result", "before", 1, 1),
    ("coalesced", "completed", "before", 1, 1),
    ("coalesced", "completed", "after", 1, 1),
    ("coalesced", "hand_out", "before", 1, 1),
    ("entry", "completed", "after", 2, 1),  # the task's result, and the first payload's
    ("coalesced", "_sync_members", "before", 2, 1),
    ("coalesced", "hand_out", "after", 1, 1),
    ("coalesced", "discard", "after", 1, 1),
]


def kill(qpu: str, owner: str, name: str, when: str, calls: int, *bad: str) -> None:
    """Run the step in a process that is killed at that call."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(("tests/faults", "tests"))}
    argv = [sys.executable, "-c", PROGRAM, qpu, owner, name, when, str(calls), *bad]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("qpu", ["ibm", "ibm_system"])
@pytest.mark.parametrize(("owner", "name", "when", "calls", "accepted"), DEATHS)
def test_whenever_the_process_is_killed_nothing_is_lost_or_paid_twice(
    counted, qpu, owner, name, when, calls, accepted
):
    kill(qpu, owner, name, when, calls)

    assert run_all(qpu) == RIGHT
    assert counted()["tasks accepted"] == accepted
    assert name in ("share", "write") or not leftovers(), (
        "the record of a task that was sent is removed"
    )


@pytest.mark.parametrize("name", ["_delete", "deleted"])
def test_a_task_that_was_deleted_at_the_vendor_is_not_run_again(counted, name):
    """It holds a lane there until it is deleted, after its result is recorded for all payloads."""
    owner = {"_delete": "deletions", "deleted": "entry"}[name]
    kill("ibm_system", owner, name, "after", 1)

    assert run_all("ibm_system") == RIGHT
    assert counted()["tasks accepted"] == 1
    assert not leftovers()


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_process_killed_while_it_records_a_failure_leaves_payloads_that_go_alone(counted, calls):
    kill("ibm", "entry", "failed", "after", calls, "bad")

    *results, error = submit_with_a_bad_one()
    assert [result.counts() for result in results] == RIGHT
    assert isinstance(error, TaskFailedError)
    assert counted()["tasks accepted"] == 5
    assert not leftovers()


def test_a_payload_that_is_rerun_alone_finds_its_part(counted):
    kill("ibm", "coalesced", "submitted", "after", 1)

    with open_lease("ibm", step="s") as lease:
        assert lease.run(word("11")).counts() == {"11": 2}
    assert len(leftovers()) == 1, "the others have not got theirs"
    with open_lease("ibm", step="s") as lease:
        assert lease.run(word("01")).counts() == {"01": 2}
        assert lease.run(word("10")).counts() == {"10": 2}
    assert not leftovers()
    assert counted()["tasks accepted"] == 1


def test_a_shared_tasks_id_alone_names_no_result(counted):
    run_all()
    records = list(Journal().step("s").records())
    task_id = str(records[0].task_id)

    with pytest.raises(JournalError, match="was shared by 3 payloads; name one of them by"):
        Journal().find(task_id)
    for record in records:
        assert Journal().find(record.digest[:12]).result == record.result


def test_payloads_that_find_their_shared_task_count_it_once(counted, monkeypatch, tmp_path):
    kill("ibm_slow", "coalesced", "submitted", "after", 1)
    monkeypatch.setenv("QPU_LEASE_RECORD", str(tmp_path / "records.jsonl"))

    assert run_all("ibm_slow") == RIGHT

    *_, line = (tmp_path / "records.jsonl").read_text().splitlines()
    assert json.loads(line)["tasks"] == counted()["tasks accepted"] == 1


def test_a_process_killed_before_the_answer_leaves_an_ambiguous_task(counted):
    kill("ibm", "coalesced", "submitted", "before", 1)

    with pytest.raises(AmbiguousTaskError):
        run_all()
    assert counted()["tasks accepted"] == 1
    assert run_all(on_ambiguous="resubmit") == RIGHT


def test_a_task_whose_record_is_missing_is_ambiguous(counted):
    kill("ibm", "coalesced", "submitted", "after", 1)
    for path in leftovers():
        path.unlink()

    with pytest.raises(AmbiguousTaskError):
        run_all()
    assert counted()["tasks accepted"] == 1


def test_the_files_are_the_users_alone(counted):
    kill("ibm", "coalesced", "completed", "after", 1)

    (path,) = leftovers()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert json.loads(path.read_text())["state"] == "completed"
