"""The efficiency of a run's QPUs beside that of its CPUs, from Slurm's real accounting."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake_runs import PAYLOAD, Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.engines,
    pytest.mark.accounting,
    pytest.mark.timeout(400),
]

SNAKEFILE = """
rule all:
    input: "0.json", "1.json", "classical.txt"
rule sample:
    input: "payload.json"
    output: "{i}.json"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "qpu run {input} -o {output}; sleep 2"
rule classical:
    output: "classical.txt"
    shell: "touch {output}"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A workflow on a sandbox with accounting."""
    box = Sandbox(tmp_path / "site")
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    try:
        box.up(accounting=True, nodes=1)
        yield Project(tmp_path / "work", box)
    finally:
        box.down(grace=0)


def test_a_qpu_job_is_not_said_to_waste_its_cpus(project: Project) -> None:
    """Its CPUs are idle, and the report says so; beside that it says how busy the QPU was."""
    project.write(SNAKEFILE)
    (project.folder / "payload.json").write_text(json.dumps(PAYLOAD))

    output = project.run("--slurm-qpu-efficiency-report")

    (report,) = project.folder.glob("qpu_efficiency_report_*.csv")
    with report.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["rule"], row["qpu"], row["jobs"], row["tasks"]) == ("sample", "ibm_fez", "2", "2")
    leases = (project.folder / ".snakemake/slurm_qpu/leases.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in leases]
    held, busy = (sum(record[name] for record in records) for name in ("held", "busy"))
    assert float(row["held_seconds"]) == pytest.approx(held, abs=2e-3)
    assert float(row["QPU Efficiency (%)"]) == pytest.approx(100 * busy / held, abs=0.1)
    assert float(row["elapsed_seconds"]) >= held - 2  # Slurm counts whole seconds
    assert 0 < float(row["CPU Efficiency (%)"]) < 100
    assert "because they wait for the QPU." in output
    assert "low CPU efficiency" not in "".join(
        line for line in output.splitlines() if "rule_sample" in line
    )
