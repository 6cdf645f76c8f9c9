"""The time limit of a task on IBM's APIs: that of the job, which a lease asks the scheduler for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import ask, bell, ibm_headers

from qrmi_workflows import open_lease
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.payloads import Payload
from qrmi_workflows.schedulers.base import RunningJob
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.vendors.registry import load_vendor

LIMIT = "QRMI_JOB_TIMEOUT_SECONDS"
FIELDS = {
    "ibm_system": ("ibm-quantum-system/v1", "timeout_secs"),
    "ibm_quick": ("ibm-quantum-compute-service", "cost"),
}


@pytest.fixture
def limit_of(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], int]:
    """Return a function that runs a task under a lease and returns its limit at the vendor."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    content = {"program_id": "sampler", "parameters": {"pubs": [[bell(), None, 10]]}}
    encoded = load_vendor("ibm").encode(Payload.from_content(content).content)

    def run(qpu: str) -> int:
        path, field = FIELDS[qpu]
        with open_lease(qpu) as lease:
            task = lease.resource.task_start(encoded)
        headers = ibm_headers(emulator, path.removesuffix("/v1"))
        status, document = ask(emulator, "GET", f"/{path}/jobs/{task}", headers=headers)
        assert status == 200, document
        return int(document[field])

    return run


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Return a function that puts this process into a job with a limit, or without one."""

    def enter(limit: int | None) -> None:
        left = None if limit is None else limit - 60
        running = RunningJob(is_ending=False, used=60, left=left)
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setattr(Slurm, "running_job", lambda *_, **__: running)

    return enter


@pytest.mark.parametrize("qpu", FIELDS)
def test_a_task_may_take_as_long_as_its_job(limit_of, in_job, qpu):
    in_job(1800)
    assert limit_of(qpu) == 1800


@pytest.mark.parametrize(("qpu", "limit"), [("ibm_system", 86400), ("ibm_quick", 10800)])
def test_without_a_limit_the_default_applies(limit_of, in_job, qpu, limit):
    """IBM's system requires a limit, so it gets one day; the service has one of its own."""
    assert limit_of(qpu) == limit
    in_job(None)
    assert limit_of(qpu) == limit


def test_ibms_service_caps_the_limit_of_a_long_job(limit_of, in_job):
    in_job(7 * 86400)
    assert limit_of("ibm_quick") == 10800


def test_the_sites_file_takes_precedence(emulator, limit_of, in_job, monkeypatch, tmp_path):
    document: dict[str, Any] = json.loads(emulator.config_path.read_text())
    for resource in document["resources"]:
        resource["environment"][LIMIT] = "90"
    (tmp_path / "qrmi_config.json").write_text(json.dumps(document))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    in_job(1800)
    assert limit_of("ibm_system") == 90


def test_an_adopted_lease_has_the_limit_that_its_owner_has_set(limit_of, in_job, monkeypatch):
    in_job(1800)
    with open_lease("ibm_system") as lease:
        for name, value in lease.environment().items():
            monkeypatch.setenv(name, value)
        in_job(60)
        assert limit_of("ibm_system") == 1800
