"""The emulator shared by most of these tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulator_clients import connect
from programs_under_lease import Under, run_under_lease
from qrmi import QuantumResource
from queue_watch import QueueWatch

from qrmi_workflows.emulator import Emulator, start_emulator

# With a seed, so that tests of counts do not fail by chance.
CONFIG = """
seed = 1

[qpus.ibm_fez]
type = "ibm-quantum-compute-service"

[qpus.ibm_noisy]
type = "ibm-quantum-compute-service"
model = "brisbane"
noise = true

[qpus.ibm_exact]
type = "ibm-quantum-compute-service"
exact = true

[qpus.ibm_strict]
type = "ibm-quantum-compute-service"
strict = true

[qpus.ibm_slow]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 600
lanes = 1
interactive_ttl_seconds = 1

[qpus.ibm_lenient]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 600
lanes = 1
server.closing_cancels_running = false
server.limits_shots = false

[qpus.ibm_quick]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05

[qpus.ibm_system]
type = "ibm-quantum-system"
lanes = 2

[qpus.ibm_full]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 30
lanes = 1

[qpus.garnet_mock]
type = "iqm-server"

[qpus.garnet_counts]
type = "iqm-server"
server.has_measurements = false
server.has_timeslot = true

[qpus.adonis]
type = "iqm-server"
model = "adonis"
simulator = "null"
execution_seconds = 30

[qpus.adonis_brief]
type = "iqm-server"
model = "adonis"
simulator = "null"
execution_seconds = 1.5

[qpus.adonis_longer]
type = "iqm-server"
model = "adonis"
simulator = "null"
execution_seconds = 3

[qpus.ab_emu_40q_logical_noiseless]
type = "alice-bob-felis"

[qpus.fresnel_local]
type = "pasqal-local"

[qpus.FRESNEL]
type = "pasqal-cloud"

[qpus.FRESNEL_CAN1]
type = "pasqal-cloud"
noise = true

[qpus.EMU_MPS]
type = "pasqal-cloud"
simulator = "emu-mps"

[qpus.EMU_FREE]
type = "pasqal-cloud"
model = "MockDevice"

[qpus.EMU_FRESNEL]
type = "pasqal-cloud"
server.quoted_programs = false
"""


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Start one emulator for all tests that do not affect each other."""
    folder = tmp_path_factory.mktemp("emulator")
    config = folder / "emulator.toml"
    config.write_text(CONFIG)
    with start_emulator(folder / "state", config=config) as running:
        yield running


@pytest.fixture
def qpu(emulator: Emulator) -> Callable[..., QuantumResource]:
    """Return a function that connects to a QPU of the shared emulator by name."""
    return lambda name, **extra: connect(emulator, name, **extra)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> QueueWatch:
    """Watch what this process is told of its tasks."""
    return QueueWatch(monkeypatch)


@pytest.fixture
def under_lease(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Under:
    """Return a function that runs a command under a lease, and returns what it prints."""
    for name, value in {
        "QPU_CONFIG": str(emulator.config_path),
        "QPU_STATE": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return run_under_lease
