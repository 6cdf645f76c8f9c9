"""The demo's report: what it reads from scontrol's output, and what it reports as wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
demo_report = import_module("demo_report")

# Slurm 22.05.8, shortened in the middle.
QPU_JOB = (
    "JobId=4 JobName=5f6df00d-eff2-4214-90b0-1ebfa321bc3e UserId=root(0) JobState=COMPLETED "
    "Reason=None Requeue=0 RunTime=00:00:02 TimeLimit=365-00:00:00 Partition=main NodeList=n1 "
    "BatchHost=n1 NumNodes=1 TRES=cpu=1,node=1,billing=1 Licenses=qpu_ibm_fez:1 Network=(null) "
    "Command=(null) WorkDir=/home/ada/demo-run Comment=rule_h2_estimate_job_3-1  StdIn=/dev/null "
    "Power= TresPerNode=gres:qpu:ibm_fez:1 "
)
BLOCK = (
    "JobId=5 JobName=parsl.qpu.block-0.a717c689c9c6 UserId=root(0) JobState=CANCELLED "
    "RunTime=00:00:04 NodeList=n1 Licenses=qpu_ibm_fez:1 Power= TresPerNode=gres:qpu:ibm_fez:1 "
)
CLASSICAL_JOB = (
    "JobId=1 JobName=5f6df00d-eff2-4214-90b0-1ebfa321bc3e JobState=COMPLETED RunTime=00:00:06 "
    "NodeList=n2 Licenses=(null) Comment=rule_prep_h2_prepare_h2_transpile  Power= "
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Create the output folder of a successful run."""
    energy = {"bond_length": 0.735, "energy": -1.1372, "exact": -1.1373, "hartree_fock": -1.117}
    documents: dict[str, Any] = {
        "h2/energies.json": [energy],
        "vqe/vqe.json": {**energy, "iterations": [{"task": "c"}, {"task": "d"}]},
        "mis/solution.json": {"found": "1001", "size": 2, "exact_size": 2, "share": 0.5},
    }
    for name, document in documents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(document))
    records = [lease("FRESNEL", "2", "a"), lease("ibm_fez", "4", "b"), lease("ibm_fez", "5", "dc")]
    (tmp_path / "state" / "leases").mkdir(parents=True)
    (tmp_path / "state" / "leases" / "2026-11-n1.jsonl").write_text("".join(records))
    return tmp_path


def lease(qpu: str, job: str, tasks: str) -> str:
    times = {"acquired": "2026-11-24T04:28:03.5+00:00", "released": "2026-11-24T04:28:05.6+00:00"}
    record = {"qpu": qpu, "owner": {"job": job}, "tasks": len(tasks), "task_ids": list(tasks)}
    return json.dumps({**record, **times, "held": 2.1}) + "\n"


def counters(open_sessions: int = 0) -> dict[str, Any]:
    fez = {"opened": 2, "closed": 2 - open_sessions, "open": open_sessions}
    none = {"opened": 0, "closed": 0, "open": 0}
    tasks = {"completed": 3}
    return {
        "qpus": {
            "ibm_fez": {"tasks": tasks, "sessions": fez},
            "FRESNEL": {"tasks": tasks, "sessions": none},
        }
    }


def test_scontrols_output_gives_the_gres_and_the_licence_of_each_job(run: Path) -> None:
    report = demo_report.collect(run, counters(), f"{CLASSICAL_JOB}\n{QPU_JOB}\n{BLOCK}\n")
    assert [(job["id"], job["name"], job["gres"], job["licences"]) for job in report.jobs] == [
        ("1", "prep_h2_prepare_h2_transpile", "", ""),
        ("4", "h2_estimate", "qpu:ibm_fez:1", "qpu_ibm_fez:1"),
        ("5", "parsl.qpu.block-0", "qpu:ibm_fez:1", "qpu_ibm_fez:1"),
    ]
    assert (run / "slurm-jobs.txt").read_text().startswith("JobId=1 ")


def test_a_successful_run_has_no_faults(run: Path) -> None:
    assert demo_report.collect(run, counters(), "").faults == []


@pytest.mark.parametrize("energy", [-1.13895, -1.1356, float("nan")])
def test_an_energy_beyond_chemical_accuracy_is_a_fault(run: Path, energy: float) -> None:
    report = demo_report.collect(run, counters(), "")
    wrong = replace(report, energies=[{**report.energies[0], "energy": energy}])
    assert [fault.partition(" is ")[0] for fault in wrong.faults] == ["H2 at 0.735 Å"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mis": {"size": 3, "exact_size": 4}}, "3 antennas were chosen instead of 4"),
        (
            {"qpus": counters(open_sessions=1)["qpus"]},
            "sessions of ibm_fez still open at the vendor: 1",
        ),
        ({"open": 1}, "leases not released: 1"),
    ],
)
def test_a_wrong_answer_or_lease_is_a_fault(run: Path, change: dict[str, Any], fault: str) -> None:
    report = replace(demo_report.collect(run, counters(), ""), **change)
    assert report.faults == [fault]


def test_an_extra_lease_is_a_fault(run: Path) -> None:
    """Separate leases for the iterations would be a second fault."""
    with (run / "state" / "leases" / "2026-11-n2.jsonl").open("w") as file:
        file.write(lease("ibm_fez", "6", "e"))
    (fault,) = demo_report.collect(run, counters(), "").faults
    assert fault.startswith("leases by QPU: {'FRESNEL': 1, 'ibm_fez': 3}")


def test_an_iteration_under_another_lease_is_a_fault(run: Path) -> None:
    report = demo_report.collect(run, counters(), "")
    wrong = replace(report, vqe={**report.vqe, "iterations": [{"task": "c"}, {"task": "b"}]})
    assert wrong.faults == ["the variational loop did not run under a single lease of its own"]


def test_a_lease_with_an_open_record_was_not_released(run: Path) -> None:
    (run / "state" / "leases" / "open").mkdir()
    (run / "state" / "leases" / "open" / "a9.json").write_text("{}")
    assert demo_report.collect(run, counters(), "").faults == ["leases not released: 1"]


def test_the_report_fits_80_columns(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = demo_report.collect(run, counters(), f"{CLASSICAL_JOB}\n{QPU_JOB}\n")
    report.print()
    lines = capsys.readouterr().out.splitlines()
    paths = [line for line in lines if str(run) in line]
    assert max(len(line) for line in lines if line not in paths) <= 80
    assert len(paths) == 3
    assert any("h2_estimate" in line and "qpu:ibm_fez:1" in line for line in lines)
    assert any("5 " in line and "04:28:03" in line and "04:28:05" in line for line in lines)
    assert any("0.735" in line and "+0.100" in line for line in lines)


def test_the_json_report_has_the_faults(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_report.collect(run, counters(open_sessions=1), "").print(as_json=True)
    assert json.loads(capsys.readouterr().out)["faults"] == [
        "sessions of ibm_fez still open at the vendor: 1"
    ]
