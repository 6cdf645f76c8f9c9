"""OQTOPUS, through the real `qrmi`: a vendor is one file and one dialect of the emulator.

QRMI's wheel lacks the library through which its client calls OQTOPUS. It is compiled here from
tests/plugins/oqtopus_bridge, which stands for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qiskit import QuantumCircuit, qasm3

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator, start_emulator

PLUGIN = Path(__file__).parents[1] / "plugins" / "oqtopus_bridge"
CONFIG = """
[qpus.qulacs]
type = "oqtopus"

[qpus.nothing]
type = "oqtopus"
simulator = "null"
"""


@pytest.fixture(scope="module")
def octopuses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Emulate two devices of OQTOPUS."""
    folder = tmp_path_factory.mktemp("oqtopus")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed: as root, run `apt-get install gcc libc6-dev`"
    library = tmp_path_factory.mktemp("bridge") / "liboqtopus_py_bridge.so"
    argv = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(PLUGIN / "bridge.c")]
    subprocess.run(argv, check=True)
    return library


def environment(emulator: Emulator, folder: Path, **own: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    return kept | {
        "QPU_CONFIG": str(emulator.config_path),
        "QPU_STATE": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
        **own,
    }


def qpu(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `qpu` in the user's home folder."""
    argv = [sys.executable, "-m", "qrmi_workflows", *arguments]
    return subprocess.run(
        argv, env=environ, cwd=environ["HOME"], capture_output=True, text=True, timeout=60
    )


def bell(**fields: Any) -> dict[str, Any]:
    """Return the payload of QRMI's generator; it writes null for what is not given."""
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    if fields.get("job_type") != "estimation":
        circuit.measure_all()
    given = {"job_type": "sampling", "program": [qasm3.dumps(circuit)], "name": "Bell"}
    return {**given, "description": None, "transpiler_info": {}, "operator": None, **fields}


@pytest.mark.slow  # it needs a C compiler, which the other tests do not
def test_a_payload_runs(octopuses: Emulator, bridge: Path, tmp_path: Path) -> None:
    """A job of each type that is emulated, and a device in the list of QPUs."""
    environ = environment(octopuses, tmp_path, PY_BRIDGE_PATH=str(bridge), PYTHONPATH=str(PLUGIN))
    operator = [{"pauli": "X 0 X 1", "coeff": 1.5}, {"pauli": "Z 0", "coeff": 1.0}]
    estimation = bell(job_type="estimation", operator=operator, shots=10000)
    (tmp_path / "sampling.json").write_text(json.dumps(bell(shots=400)))
    (tmp_path / "estimation.json").write_text(json.dumps(estimation))
    (tmp_path / "bad.json").write_text(json.dumps(bell(program=["OPENQASM 3.0; nonsense;"])))

    listed = qpu(environ, "list", "--json")
    sampled = qpu(environ, "run", "sampling.json", "-o", "s.json", "--qpu", "qulacs")
    estimated = qpu(environ, "run", "estimation.json", "-o", "e.json", "--qpu", "qulacs")
    nothing = qpu(environ, "run", "sampling.json", "-o", "n.json", "--qpu", "nothing")
    failed = qpu(environ, "run", "bad.json", "-o", "b.json", "--qpu", "qulacs")

    states = {row["name"]: row["state"] for row in json.loads(listed.stdout)}
    assert states == {"qulacs": "online", "nothing": "online"}
    assert sampled.returncode == 0, sampled.stderr
    counts = QuantumResult.load(tmp_path / "s.json").counts()
    assert set(counts) == {"00", "11"}
    assert sum(counts.values()) == 400
    assert abs(counts["00"] - 200) < 50
    assert estimated.returncode == 0, estimated.stderr
    value, error = QuantumResult.load(tmp_path / "e.json").expectation_values()
    assert 0 < error < 0.05
    assert abs(value - 1.5) < 5 * error
    assert nothing.returncode == 0, nothing.stderr
    assert failed.returncode == 1
    assert "failed at the vendor" in failed.stderr


def test_without_the_bridge_the_message_says_what_to_do(
    octopuses: Emulator, tmp_path: Path
) -> None:
    """Nothing is submitted."""
    (tmp_path / "payload.json").write_text(json.dumps(bell()))
    environ = environment(octopuses, tmp_path, PY_BRIDGE_PATH="/absent/liboqtopus_py_bridge.so")
    before = octopuses.counters()["tasks"]["accepted"]

    done = qpu(environ, "run", "payload.json", "-o", "r.json", "--qpu", "qulacs")

    assert done.returncode != 0
    assert "set PY_BRIDGE_PATH to it" in done.stderr
    assert octopuses.counters()["tasks"]["accepted"] == before
