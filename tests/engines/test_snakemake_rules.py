"""The ready-made rules in a workflow: from circuits and sequences to Snakemake's report."""

from __future__ import annotations

import csv
from ast import literal_eval
from pathlib import Path

import pytest
from snakemake_runs import BELL, Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(400)]

SNAKEFILE = """
from snakemake_executor_plugin_slurm_qpu.rules import SNAKEFILE

module qpu:
    snakefile: SNAKEFILE
    config: {"qpu": "ibm_fez", "pulser_qpu": "FRESNEL", "shots": 100, "runs": 50}

use rule * from qpu as qpu_*

use rule usage from qpu as qpu_usage with:
    input: "bell.samples.json", "bell.estimates.json", "atom.pulses.json"

rule all:
    default_target: True
    input: "summary.txt", "qpu-usage.html"

rule summary:
    input: counts="bell.samples.json", values="bell.estimates.json", pulses="atom.pulses.json"
    output: "summary.txt"
    localrule: True
    run:
        import sys

        for package in ("qiskit", "pulser"):
            sys.modules[package] = None  # importing it fails
        from qrmi_workflows.results import QuantumResult

        values, _ = QuantumResult.load(input.values).expectation_values()
        counts = [dict(QuantumResult.load(f).counts()) for f in (input.counts, input.pulses)]
        with open(output[0], "w") as file:
            print([float(values), *counts], file=file)

rule sequence:
    input: "FRESNEL.target.json"
    output: "atom.sequence.json"
    localrule: True
    script: "sequence.py"
"""
SEQUENCE = """
import json
from pulser import Pulse, Register, Sequence
from pulser.abstract_repr import deserialize_device

with open(snakemake.input[0]) as file:
    (listed,) = json.load(file)
device = deserialize_device(listed["specs"])
register = Register.from_coordinates([(0, 0)], prefix="q")
if device.requires_layout:
    register = register.with_automatic_layout(device)
sequence = Sequence(register, device)
sequence.declare_channel("global", "rydberg_global")
sequence.add(Pulse.ConstantPulse(500, 6.2832, 0, 0), "global")
sequence.measure()
with open(snakemake.output[0], "w") as file:
    file.write(sequence.to_abstract_repr())
"""


def test_the_ready_made_rules_turn_circuits_and_sequences_into_results_and_a_report(
    tmp_path: Path, sandbox: Sandbox
):
    project = Project(tmp_path, sandbox)
    project.write(SNAKEFILE, sequence=SEQUENCE)
    (tmp_path / "bell.qasm").write_text(BELL)
    (tmp_path / "bell.observables.json").write_text('{"ZZ": 1.0, "XX": 1.0}')

    output = project.run("--slurm-qpu-mark-all")
    project.run("--report", "report.html")

    energy, bell, atom = literal_eval(project.read("summary.txt"))
    assert energy == pytest.approx(2.0, abs=0.1)
    assert sum(bell.values()) == 100
    assert set(bell) == {"00", "11"}
    assert atom == {"1": 50}  # a pi pulse
    rows = list(csv.DictReader(project.read("qpu-usage.csv").splitlines()))
    assert {row["rule"] for row in rows} == {"qpu_sample", "qpu_estimate", "qpu_pulser"}
    assert all(float(row["held"]) >= float(row["busy"]) > 0 for row in rows)
    assert output.count("lease held") == 3
    report = project.read("report.html")
    assert "qpu-usage.html" in report
    assert '"QPU"' in report
