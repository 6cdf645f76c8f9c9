"""What the emulator bills for tasks and sessions of IBM's, for each kind of server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from math import ceil
from typing import Any

import pytest
from emulator_clients import (
    ask,
    bell,
    connect,
    ibm_headers,
    primitive,
    seconds_of,
    spans,
    time_in_lane,
    wait,
)
from qrmi import TaskStatus
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

SERVICE = "ibm-quantum-compute-service"
EXECUTION = 0.05
OVERHEAD = 2.0
EARLY = 0.01  # the precision of the timers of the event loop
ROUNDED = 1e-5  # bills are rounded to microseconds
SERVERS = {"_".join(server) or "default": server for server in servers(SERVICE, billing=True)}


def qpu(name: str, **settings: object) -> str:
    table = {"type": f'"{SERVICE}"', "simulator": '"null"'} | settings
    return f"[qpus.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())


QUICK = {"execution_seconds": EXECUTION, "interactive_ttl_seconds": 0.3}
CONFIG = "".join(
    qpu(f"quick_{name}", server=to_toml(server), **QUICK)
    + qpu(f"long_{name}", server=to_toml(server), execution_seconds=30)
    + qpu(f"checked_{name}", server=to_toml(server))
    for name, server in SERVERS.items()
)
CONFIG += qpu("ibm_cheap", execution_seconds=EXECUTION, overhead_seconds=0.5)
CONFIG += qpu("ibm_patient", execution_seconds=EXECUTION)  # its sessions do not lapse meanwhile


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("billing")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


def charge(emulator: Emulator, name: str, task: str) -> dict[str, Any]:
    """Return what is billed for a task."""
    tasks = emulator.billing()["qpus"][name]["tasks"]
    return next(dict(each) for each in tasks if each["id"] == task)


def session_bill(emulator: Emulator, name: str, session: str) -> dict[str, Any]:
    """Return what is billed for a session."""
    sessions = emulator.billing()["qpus"][name]["sessions"]
    return next(dict(each) for each in sessions if each["id"] == session)


def get(emulator: Emulator, path: str) -> dict[str, Any]:
    """Return one of the service's own documents."""
    return dict(ask(emulator, "GET", f"/{SERVICE}{path}", None, ibm_headers(emulator))[1])


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def sampler(**options: Any) -> Any:
    return primitive("sampler", [[bell()]], **options)


def executed(emulator: Emulator, task: str) -> float:
    """Return how long a task occupied the device, by the emulator's record: once, in its lane."""
    ((start, end),) = spans(emulator, task)
    started, finished = time_in_lane(emulator, task)
    assert started <= start <= end <= finished
    return end - start


@pytest.mark.parametrize(("name", "overhead"), [("quick_default", OVERHEAD), ("ibm_cheap", 0.5)])
def test_a_task_without_a_session_is_billed_by_qpu_seconds_and_overhead(vendor, name, overhead):
    """The documents of the job say the same as the bill."""
    resource = connect(vendor, name)
    task = resource.task_start(sampler())
    assert wait(resource, task) == TaskStatus.Completed
    billed = charge(vendor, name, task)
    assert billed["qpu_seconds"] == pytest.approx(executed(vendor, task), abs=ROUNDED)
    assert billed["qpu_seconds"] >= EXECUTION - EARLY
    assert billed["billed_seconds"] == pytest.approx(billed["qpu_seconds"] + overhead)
    assert billed["rule"] == "QPU seconds"
    assert get(vendor, f"/jobs/{task}")["usage"]["seconds"] == billed["billed_seconds"]
    metrics = get(vendor, f"/jobs/{task}/metrics")
    whole = ceil(billed["billed_seconds"])
    assert metrics["bss"] == {"seconds": whole}
    assert metrics["usage"] == {"quantum_seconds": whole, "seconds": whole}


def test_a_batch_is_billed_by_the_qpu_seconds_of_its_tasks(vendor):
    """The time between its tasks costs nothing, and each task has its overhead."""
    resource = connect(vendor, "quick_default", QRMI_IBM_QCS_SESSION_MODE="batch")
    token = resource.acquire()
    tasks = [resource.task_start(sampler()) for _ in range(3)]
    assert [wait(resource, task) for task in tasks] == [TaskStatus.Completed] * 3
    resource.release(token)
    billed = session_bill(vendor, "quick_default", token)
    own = [charge(vendor, "quick_default", task)["billed_seconds"] for task in tasks]
    assert billed["billed_seconds"] == pytest.approx(sum(own))
    on_device = sum(executed(vendor, task) for task in tasks)
    assert sum(own) == pytest.approx(on_device + 3 * OVERHEAD, abs=ROUNDED)
    assert on_device >= 3 * EXECUTION - EARLY
    assert (billed["rule"], billed["tasks"]) == ("QPU seconds", 3)
    assert get(vendor, f"/sessions/{token}")["elapsed_time"] == billed["billed_seconds"]


def test_a_dedicated_session_is_billed_by_the_wall_clock_of_its_activity(vendor):
    """It starts with the first task, not with the session, and ends with the session."""
    resource = connect(vendor, "ibm_patient")
    token = resource.acquire()
    assert session_bill(vendor, "ibm_patient", token)["billed_seconds"] == 0
    task = resource.task_start(sampler())
    assert wait(resource, task) == TaskStatus.Completed
    assert get(vendor, f"/sessions/{token}")["elapsed_time"] is None
    resource.release(token)
    document = get(vendor, f"/sessions/{token}")
    billed = session_bill(vendor, "ibm_patient", token)
    wall = moment(document["closed_at"]) - moment(document["activated_at"])
    assert billed["billed_seconds"] == pytest.approx(wall, abs=0.01)
    assert billed["rule"] == "dedicated session: wall clock"
    assert document["elapsed_time"] == billed["billed_seconds"]
    assert charge(vendor, "ibm_patient", task)["billed_seconds"] == 0
    assert get(vendor, f"/jobs/{task}")["usage"]["seconds"] >= EXECUTION + OVERHEAD - EARLY


@pytest.mark.parametrize("server", SERVERS)
def test_an_idle_session_is_billed_until_the_interactive_ttl(vendor, server):
    """Whether the time after it is billed, too, is a setting."""
    name = f"quick_{server}"
    resource = connect(vendor, name)
    token = resource.acquire()
    task = resource.task_start(sampler())
    assert wait(resource, task) == TaskStatus.Completed

    def has_lapsed() -> bool:
        return bool(get(vendor, f"/sessions/{token}")["state"] == "inactive")

    wait_until(has_lapsed, "the interactive TTL")
    lapsed = session_bill(vendor, name, token)["billed_seconds"]
    assert lapsed >= EXECUTION + 0.3 - EARLY
    resource.release(token)
    document = get(vendor, f"/sessions/{token}")
    closed = session_bill(vendor, name, token)["billed_seconds"]
    if SERVERS[server].get("bills_inactive_sessions"):
        assert closed > lapsed
        wall = moment(document["closed_at"]) - moment(document["activated_at"])
        assert closed == pytest.approx(wall, abs=0.01)
    else:
        assert closed == lapsed


def test_a_session_that_is_activated_again_is_billed_for_both_times(vendor):
    """The idle time in between is not billed."""
    resource = connect(vendor, "quick_default")
    token = resource.acquire()
    for _ in range(2):
        assert wait(resource, resource.task_start(sampler())) == TaskStatus.Completed
        wait_until(
            lambda: get(vendor, f"/sessions/{token}")["state"] == "inactive", "the interactive TTL"
        )
    resource.release(token)
    billed = session_bill(vendor, "quick_default", token)["billed_seconds"]
    active = spans(vendor, token)
    assert len(active) == 2
    assert billed == pytest.approx(seconds_of(active), abs=ROUNDED)
    assert billed >= 2 * (EXECUTION + 0.3) - EARLY
    document = get(vendor, f"/sessions/{token}")
    assert billed < moment(document["closed_at"]) - moment(document["activated_at"])


@pytest.mark.parametrize("server", SERVERS)
def test_a_cancelled_task_is_billed_for_the_time_that_it_ran(vendor, server):
    """Whether it is billed is a setting; one that has not reached the device costs nothing."""
    name = f"long_{server}"
    resource = connect(vendor, name)
    running, waiting = resource.task_start(sampler()), resource.task_start(sampler())
    wait_until(lambda: resource.task_status(running) == TaskStatus.Running, "the task's start")
    resource.task_stop(waiting)
    resource.task_stop(running)
    assert charge(vendor, name, waiting)["billed_seconds"] == 0
    billed = charge(vendor, name, running)
    assert 0 < billed["qpu_seconds"] < 30
    pays = SERVERS[server].get("bills_cancelled_tasks", True)
    assert billed["billed_seconds"] == (
        pytest.approx(billed["qpu_seconds"] + OVERHEAD) if pays else 0
    )
    assert get(vendor, f"/jobs/{running}")["usage"]["seconds"] == billed["billed_seconds"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_failed_task_is_billed_for_the_time_until_it_failed(vendor, server):
    """Whether it is billed is a setting."""
    name = f"checked_{server}"
    resource = connect(vendor, name)
    task = resource.task_start(sampler(options={"default_shots": 10**9}))
    assert wait(resource, task) == TaskStatus.Failed
    pays = SERVERS[server].get("bills_failed_tasks", True)
    billed = charge(vendor, name, task)["billed_seconds"]
    expected = executed(vendor, task) + OVERHEAD
    assert billed == (pytest.approx(expected, abs=ROUNDED) if pays else 0)


def test_a_deleted_task_stays_on_the_bill(vendor):
    """The total of the instance includes it."""
    resource = connect(vendor, "ibm_cheap")
    task = resource.task_start(sampler())
    assert wait(resource, task) == TaskStatus.Completed
    before = vendor.billing()
    headers = ibm_headers(vendor)
    assert ask(vendor, "DELETE", f"/{SERVICE}/jobs/{task}", None, headers)[0] == 204
    assert vendor.billing()["billed_seconds"] == before["billed_seconds"]
    assert charge(vendor, "ibm_cheap", task)["billed_seconds"] > 0.5
    used = get(vendor, "/instances/usage")["usage_consumed_seconds"]
    billed = [each["billed_seconds"] for each in before["qpus"].values()]
    assert used == int(sum(billed))


def test_the_bill_survives_kill_9(tmp_path):
    """An active session goes on while the service is down; a task that ran starts anew."""
    (tmp_path / "emulator.toml").write_text(
        qpu("ibm_one", execution_seconds=EXECUTION) + qpu("ibm_slow", execution_seconds=30)
    )
    config = tmp_path / "emulator.toml"
    first = start_emulator(tmp_path / "state", config=config)
    resource, slow = connect(first, "ibm_one"), connect(first, "ibm_slow")
    alone = resource.task_start(sampler())
    assert wait(resource, alone) == TaskStatus.Completed
    token = resource.acquire()
    assert wait(resource, resource.task_start(sampler())) == TaskStatus.Completed
    interrupted = slow.task_start(sampler())
    billed = charge(first, "ibm_one", alone)
    before = session_bill(first, "ibm_one", token)["billed_seconds"]
    first.process.kill()
    first.process.wait()
    with start_emulator(tmp_path / "state", config=config) as second:
        assert charge(second, "ibm_one", alone) == billed
        assert charge(second, "ibm_slow", interrupted)["billed_seconds"] == 0
        assert session_bill(second, "ibm_one", token)["billed_seconds"] > before
        resource.release(token)
        document = get(second, f"/sessions/{token}")
        wall = moment(document["closed_at"]) - moment(document["activated_at"])
        assert document["elapsed_time"] == pytest.approx(wall, abs=0.01)


def test_the_command_prints_the_bill(vendor):
    """`qpu emulator billing` has the totals of each QPU."""
    argv = [sys.executable, "-m", "qrmi_workflows", "emulator", "billing"]
    argv += ["--dir", str(vendor.folder)]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    qpus = json.loads(printed)["qpus"]
    assert qpus.keys() == vendor.billing()["qpus"].keys()
    assert qpus["ibm_cheap"]["overhead_seconds"] == 0.5
