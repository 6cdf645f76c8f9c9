"""Processes that share a lease share a task: whoever is killed, nothing is lost or paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.journal.journal import Journal

CONFIG = """
[qpus.ibm]
type = "ibm-quantum-compute-service"
execution_seconds = 0.3

[qpus.ibm_system]
type = "ibm-quantum-system"
lanes = 1
execution_seconds = 0.3
server = {finished_jobs_hold_lanes = true}
"""
WORDS = ("01", "10", "11")
PROGRAM = """
import json, os, signal, sys
from test_coalesced_tasks import word
from qrmi_workflows import open_lease
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import QPUError
from qrmi_workflows.journal.coalesced import CoalescedEntry
from qrmi_workflows.journal.lent import LentEntry
from qrmi_workflows.tasks.offers import Leadership

bits, owner, name, when, calls = sys.argv[1:]
owners = [CoalescedEntry, LentEntry, QRMIResource, Leadership]
owner = {each.__name__: each for each in owners}.get(owner)
left = int(calls)

def dies(*args, **kwargs):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    value = inner(*args, **kwargs)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value

if owner:
    inner = getattr(owner, name)
    setattr(owner, name, dies)
try:
    with open_lease(step=bits, coalesce=True) as lease:
        print(json.dumps(lease.run(word(bits)).counts()))
except QPUError as error:
    print(json.dumps(type(error).__name__))
"""


@pytest.fixture(scope="module")
def shared_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("several")
    (folder / "emulator.toml").write_text(CONFIG)
    (folder / "site.toml").write_text("")
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


class Steps:
    """Processes under one lease whose only lane is busy at first; the first to wait leads."""

    def __init__(self, lease: Lease, words: Sequence[str]) -> None:
        self.words = words
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._lease = lease
        self._environ = {
            **os.environ,
            **lease.environment(),
            "PYTHONPATH": os.pathsep.join(("tests/faults", "tests")),
        }
        self.lane = ExitStack()
        self.lane.enter_context(lease.held.lanes.hold_for_task())

    def start(self, bits: str, *death: str) -> subprocess.Popen[str]:
        """Start the step of one payload."""
        argv = [sys.executable, "-c", PROGRAM, bits, *(death or ("", "", "", "0"))]
        process = subprocess.Popen(
            argv, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.running[bits] = process
        return process

    def start_all(self, *death: str) -> None:
        """Start the steps, the first one with that death, and wait until all offer theirs."""
        for count, bits in enumerate(self.words, start=1):
            self.start(bits, *(death if count == 1 else ()))
            self.await_offers(count)

    def await_offers(self, count: int) -> None:
        folder = self._lease.held.lanes.offers
        assert folder is not None
        wait_until(lambda: len(list(folder.glob("*.offer"))) == count, f"{count} offers")

    def outcome(self, bits: str) -> object:
        """Wait for a step's end; return its counts, the name of its error, or minus its signal."""
        process = self.running.pop(bits)
        out, err = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), err
        return json.loads(out) if process.returncode == 0 else process.returncode


@contextmanager
def steps_of(qpu: str, words: Sequence[str] = WORDS) -> Iterator[Steps]:
    with open_lease(qpu, step="owner") as lease:
        steps = Steps(lease, words)
        try:
            yield steps
        finally:
            steps.lane.close()
            for process in steps.running.values():
                process.kill()
                process.communicate()
        assert not list(lease.held.lanes.offers.glob("*.claimed"))


def right(bits: str) -> dict[str, int]:
    return {bits: 2}


def leftovers() -> list[Path]:
    return list((Journal().folder / "coalesced").glob("*"))


@pytest.mark.parametrize("qpu", ["ibm", "ibm_system"])
def test_processes_that_wait_share_a_task(counted, qpu):
    with steps_of(qpu) as steps:
        steps.start_all()
        steps.lane.close()
        for bits in WORDS:
            assert steps.outcome(bits) == right(bits)
    assert counted()["tasks accepted"] == 1
    assert not leftovers()


SLOW = pytest.mark.slow
DEATHS = [
    ("Leadership", "claim", "after"),
    pytest.param("LentEntry", "share", "before", marks=SLOW),
    ("LentEntry", "share", "after"),
    ("CoalescedEntry", "submitted", "after"),
    pytest.param("QRMIResource", "task_result", "before", marks=SLOW),
    pytest.param("CoalescedEntry", "completed", "after", marks=SLOW),
    pytest.param("LentEntry", "completed", "after", marks=SLOW),
    ("CoalescedEntry", "hand_out", "after"),
    pytest.param("Leadership", "end", "before", marks=SLOW),
]


@pytest.mark.parametrize(("owner", "name", "when"), DEATHS)
def test_whenever_the_leader_is_killed_the_others_go_on(counted, owner, name, when):
    leader, member = WORDS[:2]
    with steps_of("ibm", WORDS[:2]) as steps:
        steps.start_all(owner, name, when, "1")
        steps.lane.close()
        assert steps.outcome(leader) == -signal.SIGKILL
        assert steps.outcome(member) == right(member)
        assert counted()["tasks accepted"] == 1
        steps.start(leader)
        assert steps.outcome(leader) == right(leader)
        was_submitted = name not in ("claim", "share")
        assert counted()["tasks accepted"] == (1 if was_submitted else 2)


def test_a_leader_killed_before_the_answer_leaves_an_ambiguous_task(counted):
    with steps_of("ibm") as steps:
        steps.start_all("CoalescedEntry", "submitted", "before", "1")
        steps.lane.close()
        assert steps.outcome(WORDS[0]) == -signal.SIGKILL
        for bits in WORDS[1:]:
            assert steps.outcome(bits) == "AmbiguousTaskError"
    assert counted()["tasks accepted"] == 1


def test_a_dead_process_s_offer_is_not_claimed(counted):
    with steps_of("ibm") as steps:
        steps.start_all()
        steps.running[WORDS[1]].kill()
        assert steps.outcome(WORDS[1]) == -signal.SIGKILL
        steps.lane.close()
        for bits in (WORDS[0], WORDS[2]):
            assert steps.outcome(bits) == right(bits)
        assert counted()["tasks accepted"] == 1
        assert Journal().step(WORDS[1]).records()[0].state == "claimed"
        steps.start(WORDS[1])
        assert steps.outcome(WORDS[1]) == right(WORDS[1])
    assert counted()["tasks accepted"] == 2


def submitted(step: str) -> Callable[[], bool]:
    return lambda: Journal().step(step).records()[0].state == "submitted"


@pytest.mark.parametrize("rerun_waits", [True, False])
def test_a_member_killed_while_its_task_runs_finds_its_part(counted, pause, rerun_waits):
    with steps_of("ibm") as steps:
        steps.start_all()
        pause("ibm")
        steps.lane.close()
        wait_until(submitted(WORDS[1]), "the submission")
        steps.running[WORDS[1]].kill()
        assert steps.outcome(WORDS[1]) == -signal.SIGKILL
        if rerun_waits:
            steps.start(WORDS[1])
        pause("ibm", "online")
        for bits in (WORDS[0], WORDS[2]):
            assert steps.outcome(bits) == right(bits)
        if not rerun_waits:
            steps.start(WORDS[1])
        assert steps.outcome(WORDS[1]) == right(WORDS[1])
    assert counted()["tasks accepted"] == 1
    assert not leftovers()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_leaves_the_task_to_the_others(counted, pause, rank):
    stopped = WORDS[rank]
    with steps_of("ibm") as steps:
        steps.start_all()
        pause("ibm")
        steps.lane.close()
        wait_until(submitted(WORDS[1]), "the submission")
        steps.running[stopped].terminate()
        steps.running.pop(stopped).communicate(timeout=120)
        pause("ibm", "online")
        for bits in steps.running.copy():
            assert steps.outcome(bits) == right(bits)
        steps.start(stopped)
        assert steps.outcome(stopped) == right(stopped), "its part is in the journal"
    assert counted()["tasks accepted"] == 1
    assert counted()["tasks cancelled"] == 0


def test_without_a_leader_a_stopped_process_leaves_the_task_to_the_others(counted, pause):
    with steps_of("ibm") as steps:
        steps.start_all("CoalescedEntry", "submitted", "after", "1")
        pause("ibm")
        steps.lane.close()
        assert steps.outcome(WORDS[0]) == -signal.SIGKILL
        wait_until(lambda: all(re_attached(bits) for bits in WORDS[1:]), "the others")
        steps.running[WORDS[1]].terminate()
        steps.running.pop(WORDS[1]).communicate(timeout=120)
        pause("ibm", "online")
        assert steps.outcome(WORDS[2]) == right(WORDS[2])
    assert counted()["tasks accepted"] == 1
    assert counted()["tasks cancelled"] == 0


def re_attached(step: str) -> bool:
    """Return whether the step's own file, not only the task's, says that it is submitted."""
    (path,) = Journal().step(step).folder.glob("*.json")
    return bool(json.loads(path.read_text())["state"] == "submitted")


def test_processes_whose_task_is_refused_go_alone(counted, fault):
    with steps_of("ibm") as steps:
        steps.start_all()
        fault("status", route="POST */jobs*", status=400, count=1)
        steps.lane.close()
        for bits in WORDS:
            assert steps.outcome(bits) == right(bits)
    assert counted()["tasks accepted"] == 3
    assert not leftovers()
