"""The device model: queue, lanes, durations, availability, cancellation and limits."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Iterator

import pytest
from emulator_clients import (
    ask,
    bell,
    connect,
    ibm_headers,
    primitive,
    spans,
    time_in_lane,
    wait,
)
from qrmi import TaskStatus

from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.emulator.durations import Duration
from qrmi_workflows.errors import EmulatorError

PREPARATION, EXECUTION = 1.0, 0.1
EARLY = 0.01  # the precision of the timers of the event loop
CONFIG = f"""
[qpus.ibm_lanes]
type = "ibm-quantum-compute-service"
simulator = "null"
lanes = 3
preparation_seconds = {PREPARATION}
execution_seconds = {EXECUTION}

[qpus.ibm_long]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 60

[qpus.ibm_one]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 60
lanes = 1

[qpus.ibm_pubs]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0
pub_seconds = 0.2
"""


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Start an emulator with QPUs of known durations."""
    folder = tmp_path_factory.mktemp("timed")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


def test_lanes_prepare_in_parallel_and_the_device_executes_one_at_a_time(timed):
    """Three tasks take one preparation and three executions, not three of each."""
    resource = connect(timed, "ibm_lanes")
    timed.control.ask("PATCH", "/qpus/ibm_lanes", {"availability": "paused"})
    tasks = [resource.task_start(primitive("sampler", [[bell()]])) for _ in range(4)]
    timed.control.ask("PATCH", "/qpus/ibm_lanes", {"availability": "online"})
    assert [wait(resource, task) for task in tasks] == [TaskStatus.Completed] * 4

    started, finished = zip(*(time_in_lane(timed, task) for task in tasks), strict=True)
    assert max(started[:3]) < min(finished[:3]) <= started[3]
    assert all(
        end - start >= PREPARATION + EXECUTION - EARLY
        for start, end in zip(started, finished, strict=True)
    )
    executions = [span for task in tasks for span in spans(timed, task)]
    assert len(executions) == 4
    assert all(end - start >= EXECUTION - EARLY for start, end in executions)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(executions))
    # By turns, two preparations would lie between the first execution and the third.
    assert executions[2][0] - executions[0][0] < 2 * PREPARATION


@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "plain"])
def test_each_pub_takes_its_time_on_the_device_and_has_its_own_result(timed, encoded):
    """Three PUBs take three times `pub_seconds`, also if nothing is simulated."""
    resource = connect(timed, "ibm_pubs")
    task = resource.task_start(primitive("sampler", [[bell()]] * 3, support_qiskit=encoded))
    wait(resource, task)
    document = json.loads(resource.task_result(task).value)
    results = document["__value__"]["pub_results"] if encoded else document["results"]
    assert len(results) == 3
    (charge,) = (
        each for each in timed.billing()["qpus"]["ibm_pubs"]["tasks"] if each["id"] == task
    )
    assert charge["qpu_seconds"] > 2.9 * 0.2  # the clock is rounded


def test_tasks_run_in_order_of_acceptance(timed):
    """The queue is first in, first out."""
    resource = connect(timed, "ibm_lanes")
    tasks = [resource.task_start(primitive("sampler", [[bell()]])) for _ in range(6)]
    assert [wait(resource, task) for task in tasks] == [TaskStatus.Completed] * 6
    assert sorted(tasks, key=lambda task: time_in_lane(timed, task)[1]) == tasks


def test_a_paused_qpu_accepts_tasks_but_starts_none(timed):
    """The task starts when the QPU is online again; until then the status is Paused."""
    resource = connect(timed, "ibm_lanes")
    timed.control.ask("PATCH", "/qpus/ibm_lanes", {"availability": "paused"})
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert resource.task_status(task) == TaskStatus.Queued
    assert "paused" in str(resource.status().status).lower()
    timed.control.ask("PATCH", "/qpus/ibm_lanes", {"availability": "online"})
    assert wait(resource, task) == TaskStatus.Completed


def test_a_task_that_runs_longer_than_its_limit_is_cancelled(timed):
    """The job's document has IBM's status, reason and code for this."""
    resource = connect(timed, "ibm_long", QRMI_IBM_QCS_TIMEOUT_SECONDS="1")
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert wait(resource, task) == TaskStatus.Cancelled
    path = f"/ibm-quantum-compute-service/jobs/{task}"
    _, document = ask(timed, "GET", path, headers=ibm_headers(timed))
    assert document["status"] == "Cancelled - Ran too long"
    assert document["state"] == {
        "status": "Cancelled",
        "reason": "ran too long",
        "reason_code": 1305,
    }


def test_a_queued_task_is_cancelled_before_it_starts(timed):
    """It never starts, and the running tasks continue."""
    resource = connect(timed, "ibm_long")
    tasks = [resource.task_start(primitive("sampler", [[bell()]])) for _ in range(7)]
    assert resource.task_status(tasks[6]) == TaskStatus.Queued
    resource.task_stop(tasks[6])
    assert resource.task_status(tasks[6]) == TaskStatus.Cancelled
    assert resource.task_status(tasks[0]) == TaskStatus.Running
    for task in tasks[:6]:
        resource.task_stop(task)


def system_job(name: str) -> dict[str, object]:
    url = {"presigned_url": "http://127.0.0.1:9/x", "type": "s3_compatible"}
    return {
        "id": name,
        "backend": "ibm_one",
        "program_id": "sampler",
        "timeout_secs": 60,
        "storage": {"input": url, "results": url, "logs": url},
    }


def test_the_system_api_rejects_jobs_if_lanes_are_full_or_reserved(timed):
    """The statuses are 429 and 423, and resubmitting the same job does not create another."""
    headers = ibm_headers(timed, "ibm-quantum-system")
    path = "/ibm-quantum-system/v1/jobs"
    timed.control.ask("PATCH", "/qpus/ibm_one", {"availability": "paused"})
    first, second = (f"00000000-0000-4000-8000-00000000000{digit}" for digit in "12")
    assert ask(timed, "POST", path, system_job(first), headers)[0] == 204
    assert ask(timed, "POST", path, system_job(first), headers)[0] == 204
    status, document = ask(timed, "POST", path, system_job(second), headers)
    assert (status, document["status_code"]) == (429, 429)
    assert "All 1 lanes" in document["title"]
    assert ask(timed, "POST", f"{path}/{first}/cancel", b"", headers)[0] == 204
    timed.control.ask("PATCH", "/qpus/ibm_one", {"availability": "reserved"})
    assert ask(timed, "POST", path, system_job(second), headers)[0] == 423
    timed.control.ask("PATCH", "/qpus/ibm_one", {"availability": "online"})
    assert timed.counters()["qpus"]["ibm_one"]["tasks"]["accepted"] == 1


@pytest.mark.parametrize(
    ("value", "mean", "spread"),
    [
        (2, 2, 0),
        ([1, 3], 2, 2 / 12**0.5),
        ({"normal": [5, 1]}, 5, 1),
        ({"exponential": 2}, 2, 2),
    ],
)
def test_durations_follow_their_distribution(value, mean, spread):
    """Many draws have the expected mean and standard deviation."""
    duration = Duration.parse(value, "execution_seconds")
    source = random.Random(1)
    draws = [duration.draw(source) for _ in range(20000)]
    assert statistics.mean(draws) == pytest.approx(mean, rel=0.05)
    assert statistics.pstdev(draws) == pytest.approx(spread, rel=0.05, abs=1e-9)
    assert min(draws) >= 0


@pytest.mark.parametrize("value", ["1", -1, True, [3, 1], [1], {"normal": 1}, {"poisson": 1}])
def test_malformed_durations_are_rejected(value):
    """The message lists the allowed forms."""
    with pytest.raises(EmulatorError, match=r"\[low, high\]"):
        Duration.parse(value, "execution_seconds")
