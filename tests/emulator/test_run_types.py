"""`qpu run` on a QPU of each resource type, with payloads as QRMI's `task_runner` takes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import pi
from pathlib import Path
from typing import Any

import pytest

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator

GARNET, FELIS = "garnet_mock", "ab_emu_40q_logical_noiseless"


def operation(name: str, *qubits: int, **args: Any) -> dict[str, Any]:
    return {"name": name, "locus": [f"QB{qubit}" for qubit in qubits], "args": args}


def bell(*keys: str, shots: int = 400) -> dict[str, Any]:
    """Return IQM's circuit of a Bell pair, with angles in radians."""
    turns = [operation("prx", qubit, angle=pi / 2, phase=pi / 2) for qubit in (1, 2)]
    back = operation("prx", 2, angle=-pi / 2, phase=pi / 2)
    measured = (
        [operation("measure", 1, 2, key=keys[0])]
        if len(keys) == 1
        else [operation("measure", qubit, key=key) for qubit, key in enumerate(keys, 1)]
    )
    instructions = [*turns, operation("cz", 1, 2), back, *measured]
    return {"circuits": [{"name": "bell", "instructions": instructions}], "shots": shots}


def qir() -> str:
    """Return the QIR program of a Bell pair."""
    one = "inttoptr (i64 1 to %{0}*)"
    lines = [
        "@__quantum__qis__h__body(%Qubit* null)",
        f"@__quantum__qis__cx__body(%Qubit* null, %Qubit* {one.format('Qubit')})",
        "@__quantum__qis__mz__body(%Qubit* null, %Result* null)",
        f"@__quantum__qis__mz__body(%Qubit* {one.format('Qubit')}, "
        f"%Result* {one.format('Result')})",
    ]
    calls = "".join(f"  call void {line}\n" for line in lines)
    return f"define void @main() #0 {{\nentry:\n{calls}  ret void\n}}\n"


def run(
    emulator: Emulator, folder: Path, qpu: str, payload: object, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run `qpu run` as a user whose environment names only the site's QPUs."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    (folder / "payload").write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    own = {"QPU_CONFIG": str(emulator.config_path), "QPU_STATE": str(folder / "state")}
    command = ["run", "payload", "-o", "r.json", "--qpu", qpu, *options]
    return subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", *command],
        env=kept | own | {"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_bell(counts: dict[str, int], shots: int) -> None:
    """A Bell pair's bits are equal, and each value is as frequent as the other."""
    assert set(counts) == {"00", "11"}
    assert sum(counts.values()) == shots
    assert abs(counts["00"] - shots / 2) < 5 * (shots / 4) ** 0.5


def test_iqms_circuits_run(emulator, tmp_path):
    """The payload of QRMI's generator, with the keys of iqm-client's Qiskit backend."""
    iqmjson = bell("meas_2_0_0", "meas_2_0_1")
    payload = {"iqmjson": iqmjson, "job_type": "circuit", "use_timeslot": False, "tag": None}

    done = run(emulator, tmp_path, GARNET, payload)

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert (result.type, result.program) == ("iqm-server", "circuit")
    check_bell(result.counts("meas"), 400)
    assert result.to_numpy()["meas"].shape == (400, 2)


def test_iqms_circuits_alone_run_with_other_shots(emulator, tmp_path):
    """A measurement of several qubits is one register."""
    done = run(emulator, tmp_path, GARNET, bell("m"), "--shots", "100")

    assert done.returncode == 0, done.stderr
    check_bell(QuantumResult.load(tmp_path / "r.json").counts(), 100)


@pytest.mark.parametrize(
    ("payload", "options"),
    [({"human_qir": qir(), "input_params": {"nbShots": 400}}, ()), (qir(), ("--shots", "400"))],
)
def test_felis_programs_run(emulator, tmp_path, payload, options):
    """As a payload of `task_runner`, and as a file of QIR."""
    done = run(emulator, tmp_path, FELIS, payload, *options)

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert (result.type, result.program) == ("alice-bob-felis", "qir")
    check_bell(result.counts("results"), 400)


@pytest.mark.parametrize(
    ("qpu", "payload", "message"),
    [
        (GARNET, {"iqmjson": bell("m", shots=0), "job_type": "circuit"}, "['shots']=0: must be"),
        (
            GARNET,
            {"iqmjson": {**bell("m"), "circuits": []}, "job_type": "circuit"},
            "['circuits']=[]: must be a list of one or more",
        ),
        (FELIS, {"human_qir": qir(), "input_params": {"nbShot": 5}}, "unknown parameter 'nbShot'"),
        (
            FELIS,
            {"human_qir": qir().replace("i64 1 ", "i64 40 "), "input_params": {"nbShots": 5}},
            "uses 41 qubits; must be at most 40",
        ),
        (FELIS, {"iqmjson": bell("m"), "job_type": "circuit"}, "cannot run on QPU"),
    ],
)
def test_a_bad_payload_is_refused_before_the_vendor_sees_it(
    emulator, tmp_path, qpu, payload, message
):
    before = emulator.counters()["tasks"]["accepted"]

    done = run(emulator, tmp_path, qpu, payload)

    assert done.returncode == 2
    assert message in done.stderr
    assert emulator.counters()["tasks"]["accepted"] == before


def test_a_gate_where_the_qpu_has_none_is_refused(emulator, tmp_path):
    """The target says where: the emulated Garnet has no coupler from qubit 1 to qubit 3."""
    iqmjson = bell("m")
    iqmjson["circuits"][0]["instructions"][2]["locus"] = ["QB1", "QB3"]

    done = run(emulator, tmp_path, GARNET, {"iqmjson": iqmjson, "job_type": "circuit"})

    assert done.returncode == 2
    assert "has no 'cz' on QB1-QB3" in done.stderr
