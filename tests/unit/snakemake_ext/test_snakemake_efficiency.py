"""The report of how well a run used its QPUs."""

from __future__ import annotations

import csv
import logging

import pytest

from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.schedulers.slurm_accounting import CPUUse, cpu_use_argv, parse_cpu_use
from qrmi_workflows.state.process import Owner
from snakemake_executor_plugin_slurm_qpu.efficiency import COLUMNS, QPUUse, write_report

SACCT = """\
6|3|1|00:01.860
6.batch|3|1|00:01.860
7|100|2|01:00:02
8|10|4|1-00:00:00.5
9|PENDING||
10|0|0|00:00:00
[11-12]|0|0|00:00:00
"""


def record(held: float, busy: float, qpu: str = "ibm_fez", tasks: int = 1) -> LeaseRecord:
    return LeaseRecord(
        lease="l",
        qpu=qpu,
        type="t",
        step="s",
        owner=Owner(host="n1", boot="b", pid=3, started=1, job="7"),
        acquired="",
        released="",
        queue_wait=None,
        acquire=0.0,
        held=held,
        busy=busy,
        idle=held - busy,
        tasks=tasks,
        task_ids=[],
    )


def test_cpu_time_is_read_as_sacct_writes_it():
    """Recorded from sacct 22.05; job steps are left out, because their job counts them."""
    assert parse_cpu_use(SACCT) == {
        "6": CPUUse(elapsed=3, cpus=1, used=1.86),
        "7": CPUUse(elapsed=100, cpus=2, used=3602),
        "8": CPUUse(elapsed=10, cpus=4, used=86400.5),
        "10": CPUUse(elapsed=0, cpus=0, used=0),
    }
    assert parse_cpu_use("") == {}
    assert "-X" not in cpu_use_argv("run")


def use() -> QPUUse:
    found = QPUUse()
    found.add("sample", "6", [record(10, 8), record(10, 4, tasks=3)])
    found.add("sample", "7", [record(20, 6)])
    found.add("sample", "8", [record(5, 5, qpu="FRESNEL")])
    found.add("other", "9", [record(0, 0)])
    found.add("classical", "10", [])
    return found


def test_each_rule_has_its_qpus_efficiency_beside_that_of_its_cpus():
    cpu_use = {"6": CPUUse(elapsed=30, cpus=1, used=1), "7": CPUUse(elapsed=35, cpus=2, used=2)}

    rows = [tuple(row.values()) for row in use().table(cpu_use)]

    assert rows == [
        ("other", "ibm_fez", 1, 1, 1, 0, 0, 0, None, None, None),
        ("sample", "FRESNEL", 1, 1, 1, 5, 5, 0, 100.0, None, None),
        ("sample", "ibm_fez", 2, 3, 5, 40, 18, 22, 45.0, 65, 3.0),
    ]


def test_the_report_is_written_and_says_why_cpus_are_idle(tmp_path, monkeypatch, caplog):
    (tmp_path / "sacct").write_text("#!/bin/sh\necho '6|30|1|00:01'\necho '7|35|2|00:02'\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    caplog.set_level(logging.INFO)

    write_report(use(), run="run1", folder=tmp_path / "new", logger=logging.getLogger())

    with (tmp_path / "new" / "qpu_efficiency_report_run1.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(COLUMNS)
    assert " ".join(rows[-1]) == "sample ibm_fez 2 3 5 40.0 18.0 22.0 45.0 65 3.0"
    assert (
        "Rule sample: QPU ibm_fez was held 40.0 s and busy 45.0 % of that time. Its jobs used 3.0 "
        "% of their CPUs, because they wait for the QPU."
    ) in caplog.messages


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_without_accounting_the_report_has_no_cpu_time(tmp_path, monkeypatch, caplog, script):
    if script:
        (tmp_path / "sacct").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    caplog.set_level(logging.INFO)

    write_report(use(), run="run1", folder=tmp_path, logger=logging.getLogger())

    assert "has no CPU time" in caplog.messages[0]
    assert "of that time." in caplog.text
    assert (tmp_path / "qpu_efficiency_report_run1.csv").exists()


def test_a_run_without_leases_has_no_report(tmp_path):
    write_report(QPUUse(), run="run1", folder=tmp_path, logger=logging.getLogger())

    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_does_not_end_the_run_with_an_error(tmp_path, caplog):
    (tmp_path / "file").touch()

    write_report(use(), run="r", folder=tmp_path / "file", logger=logging.getLogger())

    assert "the QPUs' efficiency is not reported" in caplog.text
