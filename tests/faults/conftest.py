"""Fixtures: an emulator whose QPUs are quick and compute nothing, and ways to make it fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from break_it import Tally
from fault_payloads import bell
from servers import servers, vary

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator

SERVERS: list[dict[str, bool]] = [{}]
if os.environ.get("OTHER_SERVERS"):  # `make test-servers`
    _, *SERVERS = servers("ibm-quantum-compute-service", "ibm-quantum-system")
    SERVERS.append({"encodes_if_asked": False})
CONFIG = """
[qpus.ibm_quick]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
lanes = 5

[qpus.ibm_slow]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 1.5
lanes = 5

[qpus.ibm_slower]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 4
lanes = 5

[qpus.ibm_with_cancel]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 1.5
lanes = 5
server = {cancel_route = true}

[qpus.ibm_endless]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 3600
lanes = 5

[qpus.ibm_long]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 60

[qpus.ibm_other]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05

[qpus.ibm_system]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 0.05
lanes = 3

[qpus.ibm_unique]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 0.05
server = {repeated_jobs_accepted = false}

[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
"""

SITE = """
[qpus.ibm_quick]
lanes = 5
[qpus.ibm_slow]
lanes = 5
[qpus.ibm_slower]
lanes = 5
[qpus.ibm_with_cancel]
lanes = 5
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run tests on which the server has no influence on one server only."""
    repeated = [
        item
        for item in items
        if item.get_closest_marker("any_server")
        and isinstance(item, pytest.Function)
        and item.callspec.params.get("server", SERVERS[0]) != SERVERS[0]
    ]
    for item in repeated:
        items.remove(item)
    config.hook.pytest_deselected(items=repeated)


@pytest.fixture(
    scope="session", params=SERVERS, ids=lambda server: "-".join(server) or "documented"
)
def server(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The settings of the emulated servers that differ from the default."""
    return request.param


@pytest.fixture(scope="session")
def shared_emulator(
    tmp_path_factory: pytest.TempPathFactory, server: dict[str, bool]
) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "emulator.toml").write_text(vary(CONFIG, server))
    (folder / "site.toml").write_text(SITE)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def emulator(
    shared_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Emulator]:
    """The shared emulator without faults, for a user with an empty state folder."""
    monkeypatch.setenv("QPU_CONFIG", str(shared_emulator.config_path))
    monkeypatch.setenv("QPU_SITE", str(shared_emulator.folder.parent / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield shared_emulator
    shared_emulator.control.ask("DELETE", "/faults")


@pytest.fixture
def fault(emulator: Emulator) -> Callable[..., None]:
    """Activate a fault rule."""
    return lambda kind, **rule: emulator.control.ask("POST", "/faults", {"kind": kind, **rule})


@pytest.fixture
def pause(emulator: Emulator) -> Iterator[Callable[..., None]]:
    """Keep the tasks of a QPU from starting, or let them start."""
    paused: set[str] = set()

    def set_availability(qpu: str, availability: str = "paused") -> None:
        paused.add(qpu)
        emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": availability})

    yield set_availability
    for qpu in list(paused):
        set_availability(qpu, "online")


@pytest.fixture
def matched(emulator: Emulator) -> Callable[[], int]:
    """Count the requests that the active faults have matched."""
    return lambda: sum(rule["matched"] for rule in emulator.control.ask("GET", "/faults"))


@pytest.fixture
def counted(emulator: Emulator) -> Callable[[], dict[str, int]]:
    """Count the tasks and sessions since the test started."""

    def now() -> dict[str, int]:
        counters = emulator.counters()
        return {
            f"{kind} {key}": n
            for kind in ("tasks", "sessions")
            for key, n in counters[kind].items()
        }

    before = now()
    return lambda: {key: number - before[key] for key, number in now().items()}


@pytest.fixture
def payload_file(tmp_path: Path) -> Path:
    path = tmp_path / "bell.json"
    path.write_text(json.dumps(bell()))
    return path


@pytest.fixture
def quick(emulator: Emulator) -> Iterator[Lease]:
    """A lease of the quick QPU, for a step named `quick`."""
    with open_lease("ibm_quick", step="quick") as lease:
        yield lease


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    """What all broken runs have lost in total; printed at the end."""
    counts = Tally()
    yield counts
    print(f"\n{counts}")
