"""Processes under one lease that share tasks: each result is that of its own circuit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_coalescing import flips, sampler

from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.results import QuantumResult

CONFIG = """
[qpus.ibm]
type = "ibm-quantum-compute-service"
exact = true
"""
PROGRAM = """
import os, shlex, subprocess, sys, time
from qrmi_workflows import open_lease

offers, *commands = sys.argv[1:]
with open_lease() as lease:
    with lease.held.lanes.hold_for_task():
        running = [subprocess.Popen(shlex.split(command)) for command in commands]
        while len(list(lease.held.lanes.offers.glob("*.offer"))) < int(offers):
            time.sleep(0.05)
    sys.exit(max(process.wait() for process in running))
"""


@pytest.fixture(scope="module")
def ibm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def run_all(ibm, tmp_path, monkeypatch):
    """Run payloads as steps under one lease with a busy lane; return results, number of tasks."""
    monkeypatch.setenv("QPU_CONFIG", str(ibm.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def run(payloads: list[dict[str, Any]], *prefixes: str) -> tuple[list[QuantumResult], int]:
        """Run each payload by `qpu run --coalesce`, the last ones with these before `qpu run`."""
        before = ibm.counters()["tasks"]["accepted"]
        commands = []
        for rank, payload in enumerate(payloads):
            Path(f"{rank}.json").write_text(json.dumps(payload))
            late = rank - len(payloads) + len(prefixes)
            start = f"{prefixes[late]} qpu run" if late >= 0 else "qpu run --coalesce"
            commands.append(f"{start} -q {rank}.json -o {rank}.result.json")
        offers = str(sum("--coalesce" in each or "QPU_COALESCE=1" in each for each in commands))
        argv = [sys.executable, "-c", PROGRAM, offers, *commands]
        subprocess.run(["qpu", "lease", "exec", "--qpu", "ibm", "--", *argv], check=True)
        results = [QuantumResult.load(Path(f"{n}.result.json")) for n in range(len(payloads))]
        return results, ibm.counters()["tasks"]["accepted"] - before

    return run


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_steps_that_wait_for_a_lane_share_one_task(run_all, count):
    words = [(f"{rank % 4:02b}", f"{rank // 4:03b}") for rank in range(count)]

    results, tasks = run_all([sampler(flips(*word)) for word in words])

    assert tasks == 1
    assert len({result.task_id for result in results}) == 1
    assert len({result.payload_digest for result in results}) == count
    for result, (low, high) in zip(results, words, strict=True):
        assert (result.counts("low"), result.counts("high")) == ({low: 3}, {high: 3})


def test_what_does_not_agree_or_does_not_ask_for_it_goes_alone(run_all, tmp_path):
    circuit = flips("1", "0")
    payloads = [sampler(circuit), sampler(flips("0", "1")), sampler(circuit, shots=4)]
    payloads += [sampler(flips("1", "1")), sampler(flips("0", "0"))]

    # The first of the last two does not ask for it; the other has another journal.
    other = f"env QPU_COALESCE=1 QPU_STATE={tmp_path / 'other'}"
    results, tasks = run_all(payloads, "env", other)

    assert tasks == 4
    assert results[0].task_id == results[1].task_id
    assert [result.counts("low") for result in results] == [
        {"1": 3}, {"0": 3}, {"1": 4}, {"1": 3}, {"0": 3},
    ]  # fmt: skip
