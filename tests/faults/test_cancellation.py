"""Cancelling a task at vendors that cancel it, refuse to, fail, or cannot: it is paid for once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pulser
import pytest
from fault_payloads import bell
from servers import qpus_of_servers, to_toml
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import TaskCancelledError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.tasks import cancellation

TYPES = {
    "ibm-quantum-compute-service": qpus_of_servers("ibm-quantum-compute-service", "compute"),
    "ibm-quantum-system": qpus_of_servers("ibm-quantum-system", "system"),
    "pasqal-cloud": {"EMU_FREE": {}, "EMU_MPS": {"cancel_route": False}},
}
SERVERS = {name: server for servers in TYPES.values() for name, server in servers.items()}
CONFIG = "".join(
    f"""
[qpus.{name}]
type = "{type_}"
simulator = "null"
execution_seconds = 0.05
server = {to_toml(server)}
"""
    for type_, servers in TYPES.items()
    for name, server in servers.items()
)
# Each type's request to cancel a task; requests for its state; and a task that it knows.
CANCEL = {"compute": "POST */cancel", "system": "POST */cancel", "EMU": "PATCH */cancel"}


@pytest.fixture(scope="module")
def shared_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("cancel")
    (folder / "emulator.toml").write_text(CONFIG)
    (folder / "site.toml").write_text("")
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture(scope="module")
def sequence() -> dict[str, Any]:
    register = pulser.Register.from_coordinates([(0, 0)], prefix="q")
    written = pulser.Sequence(register, pulser.MockDevice)
    written.declare_channel("rydberg", "rydberg_global")
    written.add(pulser.Pulse.ConstantPulse(500, 2, 0, 0), "rydberg")
    return json.loads(written.to_abstract_repr())


@pytest.fixture
def payload(sequence: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Return a payload for a QPU."""
    return lambda qpu: {"sequence": sequence, "job_runs": 5} if qpu.startswith("EMU") else bell()


def stop_one(
    pause: Callable[..., None],
    qpu: str,
    payload: dict[str, Any],
    before: Callable[[], None] = lambda: None,
) -> str:
    """Submit a task, cancel it before it ends, and rerun it; return what its caller was told."""
    pause(qpu)
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(payload)
        wait_until(lambda: future.task_id, "the task's id")
        before()
        future.cancel()
        with pytest.raises(TaskCancelledError) as caught:
            future.result(timeout=60)
        told = str(caught.value)
        pause(qpu, "online")
        with rerun(lease) as again:
            assert (again.run(payload).task_id != future.task_id) is ("was stopped" in told)
    return told


def rerun(lease: Lease) -> Lease:
    """Return a lease for another run of the step; it shares the session, which may be exclusive."""
    lease._journal.close(lease.step)
    return lease.for_step("s")


@pytest.mark.parametrize("qpu", sorted(SERVERS))
def test_a_stopped_task_is_cancelled_or_found_by_the_rerun(emulator, counted, payload, pause, qpu):
    """A server without a route for it answers 404, which says nothing about the task."""
    told = stop_one(pause, qpu, payload(qpu))

    is_cancellable = SERVERS[qpu].get("cancel_route", True)
    assert ("was stopped" if is_cancellable else "may still be running; rerun the step") in told
    assert counted()["tasks cancelled"] == is_cancellable
    assert counted()["tasks completed"] == 1, "paid for once"


@pytest.mark.parametrize("qpu", ["compute_default", "system_default", "EMU_FREE"])
@pytest.mark.parametrize("status", [403, 404, 409])
def test_a_refused_cancellation_says_nothing_about_the_task(
    emulator, counted, payload, fault, pause, qpu, status
):
    route = CANCEL[qpu.partition("_")[0]]

    told = stop_one(
        pause, qpu, payload(qpu), lambda: fault("status", route=route, status=status, count=1)
    )

    assert "may still be running" in told
    assert counted()["tasks completed"] == counted()["tasks accepted"] == 1


@pytest.mark.parametrize("qpu", ["compute_default", "EMU_FREE"])
def test_a_cancellation_whose_answer_is_lost_is_known_by_the_state(
    emulator, counted, payload, fault, pause, qpu
):
    route = CANCEL[qpu.partition("_")[0]]

    told = stop_one(
        pause, qpu, payload(qpu), lambda: fault("drop", route=route, when="after", count=1)
    )

    assert "was stopped" in told
    assert counted()["tasks cancelled"] == counted()["tasks completed"] == 1


@pytest.mark.parametrize("qpu", ["compute_default", "system_default", "EMU_FREE"])
def test_a_task_that_ends_before_its_cancellation_keeps_its_result(
    emulator, counted, payload, monkeypatch, pause, qpu
):
    cancel = cancellation.cancel_task

    def cancel_late(resource, task_id, traits):
        pause(qpu, "online")
        wait_until(
            lambda: str(resource.task_status(task_id)) == "TaskStatus.Completed", "the task's end"
        )
        return cancel(resource, task_id, traits)

    monkeypatch.setattr("qrmi_workflows.tasks.run.cancel_task", cancel_late)
    pause(qpu)
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(payload(qpu))
        wait_until(lambda: future.task_id, "the task's id")
        future.cancel()
        assert future.result(timeout=60).task_id == future.task_id
    (record,) = Journal().step("s").records()
    assert record.state is RecordState.COMPLETED
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("qpu", ["compute_default", "EMU_FREE"])
def test_a_cancellation_that_takes_effect_late_is_not_the_reruns_error(
    emulator, counted, payload, fault, pause, qpu
):
    """The vendor accepts it, but the task's state is still the old one."""
    route = CANCEL[qpu.partition("_")[0]]
    pause(qpu)
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(payload(qpu))
        wait_until(lambda: future.task_id, "the task's id")
        fault("status", route=route, status=200, body="{}", count=1)
        future.cancel()
        with pytest.raises(TaskCancelledError, match="may still be running"):
            future.result(timeout=60)

        with rerun(lease) as again:
            waiting = again.submit(payload(qpu))
            wait_until(lambda: waiting.task_id == future.task_id, "the rerun to re-attach")
            lease.resource.task_stop(future.task_id)
            pause(qpu, "online")
            assert waiting.result(timeout=60).task_id != future.task_id
    assert counted()["tasks completed"] == 1
