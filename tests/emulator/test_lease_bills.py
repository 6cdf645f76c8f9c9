"""A lease record's estimated bill agrees with what the vendor bills, for each resource type.

The two figures are independent: the emulator measures when the device was occupied and sessions
were active; the lease knows when its tasks were last seen queued, and when it saw their end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import bell, connect, device_of, pi_pulse
from munge_daemon import running_munged
from servers import servers, to_toml

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.lease.record import LeaseRecord

SERVICE = "ibm-quantum-compute-service"
QUEUE, EXECUTION, OVERHEAD = 0.8, 0.3, 2.0
PAUSE = 1.3  # between two tasks; long enough that it shows if it is billed
LOWER = 0.4
"""How much lower than the bill the estimate may be, in seconds."""
QPUS = {
    "ibm_system": "ibm-quantum-system",
    "FRESNEL": "pasqal-cloud",
    "local": "pasqal-local",
    "garnet_mock": "iqm-server",
    "ab_emu_40q": "alice-bob-felis",
}
QUEUE_UNSEEN = ("ibm_system", "garnet_mock")
"""QRMI has queued tasks of IBM's API running, and IQM's status waits for the end of the task."""
SERVERS = {
    f"ibm_{'_'.join(server) or 'default'}": server for server in servers(SERVICE, billing=True)
}
QIR = """define void @main() #0 {
entry:
  call void @__quantum__qis__h__body(%Qubit* null)
  call void @__quantum__qis__mz__body(%Qubit* null, %Result* null)
  ret void
}
"""
GARNET = {
    "circuits": [
        {
            "name": "one",
            "instructions": [{"name": "measure", "locus": ["QB1"], "args": {"key": "m"}}],
        }
    ],
    "shots": 10,
}


def config() -> str:
    common = f'simulator = "null"\nexecution_seconds = {EXECUTION}\nqueue_seconds = {QUEUE}\n'
    types = "".join(f'[qpus.{name}]\ntype = "{type_}"\n{common}' for name, type_ in QPUS.items())
    services = "".join(
        f'[qpus.{name}]\ntype = "{SERVICE}"\nserver = {to_toml(server)}\n{common}'
        for name, server in SERVERS.items()
    )
    return types + services


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("bills")
    (folder / "emulator.toml").write_text(config())
    with ExitStack() as stack:
        if os.getuid() == 0:  # the warden of Pasqal Local needs it
            stack.enter_context(running_munged())
        yield stack.enter_context(start_emulator(folder / "state", config=folder / "emulator.toml"))


@pytest.fixture
def hold(vendor: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Lease]:
    """Return a function that opens a lease on a QPU, with further settings of QRMI's."""

    def open_one(name: str, **settings: str) -> Lease:
        document = json.loads(vendor.config_path.read_text())
        for entry in document["resources"]:
            entry["environment"] |= settings if entry["name"] == name else {}
        (tmp_path / "qrmi_config.json").write_text(json.dumps(document))
        (tmp_path / "qrmi_config.json").chmod(0o600)
        return open_lease(name, config=tmp_path / "qrmi_config.json", step="bill")

    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("QPU_LEASE_RECORD", str(tmp_path / "records"))
    monkeypatch.setenv("QRMI_JOB_UID", str(os.getuid()))
    monkeypatch.setenv("QRMI_JOB_ID", "1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return open_one


def sampler(shots: int = 10) -> dict[str, Any]:
    parameters = {"pubs": [[bell(), None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


def payload(emulator: Emulator, name: str, folder: Path) -> Any:
    """Return a payload for a QPU."""
    kind = QPUS.get(name, SERVICE)
    if kind.startswith("ibm"):
        return sampler()
    if kind.startswith("pasqal"):
        job = {"QRMI_JOB_UID": str(os.getuid()), "QRMI_JOB_ID": "1"}
        sequence = json.loads(pi_pulse(device_of(connect(emulator, name, **job))))
        return {"sequence": sequence, "job_runs": 10}
    text, suffix = (json.dumps(GARNET), "json") if kind == "iqm-server" else (QIR, "ll")
    (folder / f"payload.{suffix}").write_text(text)
    return folder / f"payload.{suffix}"


def record(folder: Path) -> LeaseRecord:
    (line,) = (folder / "records").read_text().splitlines()
    return LeaseRecord.from_json(line)


def check(estimate: float | None, billed: float, longest: float) -> None:
    """Check an estimate against the bill, and against the longest time that the client saw."""
    assert estimate is not None
    assert billed - LOWER <= estimate <= longest


@pytest.mark.parametrize("name", QPUS)
def test_qpu_seconds_of_each_resource_type(vendor, hold, tmp_path, watch, name):
    """The wait in the vendor's queue is not billed, and the pause between tasks is not."""
    content, longest = payload(vendor, name, tmp_path), 0.0
    with hold(name) as lease:
        for _ in range(2):
            task = lease.run(content, shots=10).task_id
            longest += watch.seconds_since_queued(task)
    bill = vendor.billing()["qpus"][name]
    assert len(bill["tasks"]) == 2
    unseen = 2 * QUEUE if name in QUEUE_UNSEEN else 0.0
    check(record(tmp_path).billed, bill["billed_seconds"] + unseen, longest)
    assert record(tmp_path).billing_rule == "QPU seconds"
    assert record(tmp_path).shots == 2 * 10


@pytest.mark.parametrize(
    "name",
    [
        "ibm_default",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SERVERS if name != "ibm_default"),
    ],
)
@pytest.mark.parametrize("mode", ["dedicated", "batch"])
def test_both_modes_of_ibms_sessions(vendor, hold, tmp_path, watch, name, mode):
    """The session is billed from its first task's start, or each task with its overhead."""
    with hold(name, QRMI_IBM_QCS_SESSION_MODE=mode) as lease:
        first = lease.run(sampler()).task_id
        longest = watch.seconds_since_queued(first) + OVERHEAD
        time.sleep(PAUSE)
        second = lease.run(sampler(11)).task_id
        longest += watch.seconds_since_queued(second) + OVERHEAD
    if mode == "dedicated":
        longest = watch.seconds_since_queued(first)
    (session,) = (
        each for each in vendor.billing()["qpus"][name]["sessions"] if each["mode"] == mode
    )
    left = record(tmp_path)
    check(left.billed, session["billed_seconds"], longest)
    assert session["billed_seconds"] > (OVERHEAD * 2 if mode == "batch" else 2 * EXECUTION + PAUSE)
    assert left.billing_rule == (
        "dedicated session: wall clock" if mode == "dedicated" else "QPU seconds and 2 s a task"
    )
    assert f"estimated bill {left.billed:.2f} s ({left.billing_rule})" in left.describe()


def test_tasks_at_the_same_time_count_once(vendor, hold, tmp_path, watch):
    """The device executes one at a time, so their times in a lane do not add up."""
    with hold("ibm_default", QRMI_IBM_QCS_SESSION_MODE="batch") as lease:
        before = vendor.billing()["qpus"]["ibm_default"]["billed_seconds"]
        done = list(lease.map([sampler(20 + number) for number in range(4)]))
        longest = watch.seconds_since_queued(*(each.task_id for each in done)) + 4 * OVERHEAD
    billed = vendor.billing()["qpus"]["ibm_default"]["billed_seconds"] - before
    assert billed > 4 * (OVERHEAD + EXECUTION) - LOWER
    check(record(tmp_path).billed, billed, longest)
