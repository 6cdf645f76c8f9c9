"""When reaping queries the scheduler about jobs on other hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.state.process import Owner


@pytest.fixture(autouse=True)
def lease_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenLease:
    """An open lease whose process only the scheduler may know."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    opened = OpenLease.create(
        qpu="ibm_fez", type="ibm-quantum-system", step="", acquire=0.0, config=None, token="secret"
    )
    owner = Owner(host="elsewhere", boot="", pid=1, started=1, job="17")
    opened = replace(opened, owner=owner)
    opened._write()
    return opened


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Make these the only commands there are."""
    folder.mkdir()
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_host_without_the_scheduler_does_not_keep_another_from_querying_it(tmp_path, monkeypatch):
    put_on_path(tmp_path / "container", monkeypatch)
    assert reap(patience=1) == []

    log = tmp_path / "log"
    put_on_path(
        tmp_path / "node",
        monkeypatch,
        squeue=f"echo asked >>'{log}'; echo '17\x1f17\x1fRUNNING\x1f'",
    )
    assert reap(patience=1) == []

    assert log.read_text() == "asked\n"


def test_within_a_minute_the_scheduler_is_queried_once(tmp_path, monkeypatch):
    log = tmp_path / "log"
    put_on_path(
        tmp_path / "node",
        monkeypatch,
        squeue=f"echo asked >>'{log}'; echo '17\x1f17\x1fRUNNING\x1f'",
    )

    for _ in range(3):
        assert reap(patience=1) == []

    assert log.read_text() == "asked\n"
