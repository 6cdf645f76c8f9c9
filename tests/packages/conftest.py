"""An emulator with a noiseless and a noisy QPU, and leases on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qiskit import QuantumCircuit, generate_preset_pass_manager

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.vendors.ibm import transpiler_target

CONFIG = """
seed = 7

[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
strict = true

[qpus.ibm_noisy]
type = "ibm-quantum-compute-service"
strict = true
noise = true
"""


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("emulator")
    config = folder / "emulator.toml"
    config.write_text(CONFIG)
    with start_emulator(folder / "state", config=config) as running:
        yield running


@pytest.fixture(params=["ibm_fez"])
def lease(
    request: pytest.FixtureRequest,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Lease]:
    """Return a lease on `ibm_fez`, or on the QPU that the test names as the parameter."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    with open_lease(request.param, step=request.node.name) as held:
        yield held


@pytest.fixture
def transpile(lease: Lease) -> Callable[..., QuantumCircuit]:
    """Return a function that transpiles circuits for the lease's QPU."""
    target = transpiler_target(lease.target())

    def run(circuit: QuantumCircuit, level: int = 1) -> QuantumCircuit:
        manager = generate_preset_pass_manager(
            optimization_level=level, target=target, seed_transpiler=1
        )
        return manager.run(circuit)

    return run
