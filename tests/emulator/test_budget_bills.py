"""What a task is settled with in budgets agrees with what the vendor bills, for each server.

QRMI passes on no bill. The emulator measures when the device was occupied; the lease knows when it
last saw the task queued, and when it saw its end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import bell, connect, device_of, pi_pulse
from servers import servers, to_toml
from test_lease_bills import GARNET, LOWER, QIR
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.budgets.allowance import find_usage, today
from qrmi_workflows.budgets.ledger import Ledger, this_user
from qrmi_workflows.budgets.limits import Limit, write_limits
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import BudgetError, TaskFailedError
from qrmi_workflows.journal.journal import Journal

SERVICE = "ibm-quantum-compute-service"
QUEUE, EXECUTION, OVERHEAD = 0.8, 0.6, 2.0
TYPES = {
    "ibm_system": "ibm-quantum-system",
    "FRESNEL": "pasqal-cloud",
    "garnet_mock": "iqm-server",
    "ab_emu_40q": "alice-bob-felis",
}
QUEUE_UNSEEN = ("ibm_system", "garnet_mock")
SERVERS = {
    f"ibm_{'_'.join(server) or 'default'}": server for server in servers(SERVICE, billing=True)
}
KINDS = ("long", "queued", "failing")
LIMIT = Limit(scope="user", name="*", unit="seconds", amount=600_000, per="day")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("budget-bills")
    common = f'simulator = "null"\nqueue_seconds = {QUEUE}\n'
    config = "".join(
        f'[qpus.{name}]\ntype = "{type_}"\nexecution_seconds = {EXECUTION}\n{common}'
        for name, type_ in TYPES.items()
    )
    for name, server in SERVERS.items():
        for kind, seconds, queue in (
            ("", EXECUTION, QUEUE),
            ("long_", 60, QUEUE),
            ("queued_", EXECUTION, 60),
        ):
            config += f'[qpus.{kind}{name}]\ntype = "{SERVICE}"\nserver = {to_toml(server)}\n'
            config += f'simulator = "null"\nqueue_seconds = {queue}\n'
            config += f"execution_seconds = {seconds}\n"
        config += f'[qpus.failing_{name}]\ntype = "{SERVICE}"\nserver = {to_toml(server)}\n'
        config += f"overhead_seconds = {OVERHEAD}\n"  # it executes as long as its simulator runs
    (folder / "emulator.toml").write_text(config)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def site(vendor: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A site with a budget in seconds; tasks are billed one by one, not by their session."""
    document = json.loads(vendor.config_path.read_text())
    for entry in document["resources"]:
        entry["environment"] |= {"QRMI_IBM_QCS_SESSION_MODE": "batch"}
    (tmp_path / "qrmi_config.json").write_text(json.dumps(document))
    (tmp_path / "qrmi_config.json").chmod(0o600)
    budgets = tmp_path / "budgets"
    Ledger(budgets).prepare(for_all=True)
    write_limits(budgets, [LIMIT])
    names = [*TYPES, *SERVERS, *(f"{kind}_{name}" for name in SERVERS for kind in KINDS)]
    policy = "".join(f"[qpus.{name}]\nlanes = 2\n" for name in names)
    (tmp_path / "site.toml").write_text(f'[site]\nbudgets = "{budgets}"\n{policy}')
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return budgets


def payload(emulator: Emulator, name: str, folder: Path) -> Any:
    kind = TYPES.get(name, SERVICE)
    if kind.startswith("ibm"):
        parameters = {"pubs": [[bell(), None, 10]], "version": 2, "support_qiskit": True}
        return {"program_id": "sampler", "parameters": parameters}
    if kind.startswith("pasqal"):
        sequence = json.loads(pi_pulse(device_of(connect(emulator, name))))
        return {"sequence": sequence, "job_runs": 10}
    text, suffix = (json.dumps(GARNET), "json") if kind == "iqm-server" else (QIR, "ll")
    (folder / f"payload.{suffix}").write_text(text)
    return folder / f"payload.{suffix}"


def settled(site: Path) -> float:
    """Return how many seconds were spent; nothing is reserved any more."""
    limit = Limit(scope="user", name=this_user(), unit="seconds", amount=0, per="day")
    found = find_usage(Ledger(site), limit, this_user(), today())
    assert found.reserved == 0
    return found.spent / 1000


def charge(emulator: Emulator, name: str, task: str) -> dict[str, Any]:
    """Return what the vendor reports of a task."""
    tasks = emulator.billing()["qpus"][name]["tasks"]
    found = [each for each in tasks if each["id"] == task] or tasks  # Pasqal's tasks are batches
    return dict(found[-1])


@pytest.mark.parametrize("name", [*TYPES, "ibm_default"])
def test_a_completed_task(vendor, site, tmp_path, watch, name):
    with open_lease(name, step="s") as lease:
        task = lease.run(payload(vendor, name, tmp_path), shots=10).task_id
        longest = watch.seconds_since_queued(task)

    unseen = QUEUE if name in QUEUE_UNSEEN else 0.0
    billed = charge(vendor, name, task)
    assert billed["usage_seconds"] + unseen - LOWER <= settled(site)
    assert settled(site) <= longest + billed["overhead_seconds"]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("state", ["Queued", "Running"])
def test_a_cancelled_task(vendor, site, tmp_path, watch, name, state):
    """If the server does not bill the time of a cancelled task, it counts too much."""
    server = SERVERS[name]
    name, seen = f"{'queued' if state == 'Queued' else 'long'}_{name}", threading.Event()
    with open_lease(name, step="s") as lease:
        content = payload(vendor, name, tmp_path)
        future = lease.submit(content, on_state=lambda _id, now: seen.set() if now == state else 0)
        assert seen.wait(30)
        future.cancel_task()
        lease.await_tasks()
        longest = watch.seconds_since_queued(str(future.task_id))

    (record,) = Journal().step("s").records()
    assert record.cost.spent.shots == 0
    billed = charge(vendor, name, str(record.task_id))
    if state == "Queued":
        assert settled(site) == billed["usage_seconds"] == 0
    elif server.get("bills_cancelled_tasks", True):
        assert billed["usage_seconds"] - LOWER <= settled(site)
        assert settled(site) <= longest + billed["overhead_seconds"]
    else:
        assert settled(site) >= billed["usage_seconds"] == 0


@pytest.mark.parametrize("name", SERVERS)
def test_a_failed_task(vendor, site, watch, name):
    """Its shots are given back. If the server does not bill its time, that counts too much."""
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; h $400; c[0] = measure $400;'
    bad = {"program_id": "sampler", "parameters": {"pubs": [[circuit, None, 100]]}}
    with (
        open_lease(f"failing_{name}", step="s") as lease,
        pytest.raises(TaskFailedError),
    ):
        lease.run(bad)

    (record,) = Journal().step("s").records()
    longest = watch.seconds_since_queued(str(record.task_id))
    assert record.cost.spent.shots == 0
    billed = charge(vendor, f"failing_{name}", str(record.task_id))
    if SERVERS[name].get("bills_failed_tasks", True):
        assert billed["usage_seconds"] >= OVERHEAD
        assert billed["usage_seconds"] - LOWER <= settled(site)
        assert settled(site) <= longest + billed["overhead_seconds"]
    else:
        assert settled(site) >= billed["usage_seconds"] == 0


def test_tasks_of_unknown_duration_run_one_at_a_time_until_three_were_measured(
    vendor, site, tmp_path
):
    """Each reserves all that is left, so they never take more than one task too much."""
    content = payload(vendor, "FRESNEL", tmp_path)
    with open_lease("FRESNEL", step="s") as lease:
        assert lease.estimate(content).seconds is None
        vendor.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "paused"})
        try:
            first = lease.submit(content)
            wait_until(lambda: first.task_id is not None, "the first task's id")
            with pytest.raises(BudgetError, match=r"an unknown number of seconds.*running tasks"):
                lease.run({**content, "job_runs": 11})
        finally:
            vendor.control.ask("PATCH", "/qpus/FRESNEL", {"availability": "online"})
        first.result()
        for runs in (11, 12):
            lease.run({**content, "job_runs": runs})
        assert lease.estimate(content).origin == "measured: 3 tasks"
        together = [lease.submit({**content, "job_runs": runs}) for runs in (13, 14)]
        for future in together:
            future.result()
    assert 5 * EXECUTION <= settled(site) < LIMIT.amount / 1000


def test_tasks_of_unknown_duration_take_turns_on_a_lane(vendor, site, tmp_path, monkeypatch):
    """The second one needs what the first has reserved, until its result was fetched."""
    fetch = QRMIResource.task_result

    def fetch_slowly(resource: QRMIResource, task_id: str) -> Any:
        time.sleep(0.5)
        return fetch(resource, task_id)

    monkeypatch.setattr(QRMIResource, "task_result", fetch_slowly)
    monkeypatch.setenv("QPU_LANES", "1")
    content = payload(vendor, "FRESNEL", tmp_path)
    with open_lease("FRESNEL", step="s") as lease:
        payloads = [content, {**content, "job_runs": 11}]
        assert len({result.task_id for result in lease.map(payloads)}) == 2


def test_a_task_that_is_cancelled_while_nobody_looks(vendor, site, tmp_path):
    """Its time was not observed, so it counts as expected; the rerun reserves for the next one."""
    name, seen, again = "long_ibm_default", threading.Event(), threading.Event()
    content = payload(vendor, name, tmp_path)
    with open_lease(name, step="s") as lease:
        future = lease.submit(
            content,
            on_stop="leave",
            on_state=lambda _id, now: seen.set() if now == "Running" else 0,
        )
        assert seen.wait(30)
        future.cancel()
    (left,) = Journal().step("s").records()
    connect(vendor, name).task_stop(str(left.task_id))

    with open_lease(name, step="s") as lease:
        future = lease.submit(content, on_state=lambda *_: again.set())
        assert again.wait(30)
        future.cancel_task()
        lease.await_tasks()

    (record,) = Journal().step("s").records()
    assert record.task_id != left.task_id
    assert settled(site) >= left.cost.estimate.seconds == 2.003
