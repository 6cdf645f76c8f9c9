"""Snakemake's own tutorial, as published, with one rule added that uses a QPU.

The tutorial's text comes from Debian's package of Snakemake's documentation, and the programs that
its rules call come from Debian and PyPI; `make test-tutorial` sets them up. Its data is generated
here.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
from snakemake_runs import PAYLOAD, Project, submitted

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.tutorial, pytest.mark.timeout(300)]

TUTORIAL = Path(__file__).parents[2] / ".tutorial/usr/share/doc/snakemake/html/_sources/tutorial"
QUANTUM = """

rule quantum:
    input: "payload.json", "calls/all.vcf"
    output: "result.json"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "qpu run {input[0]} -o {output}"
"""
VARIANTS = range(500, 10_000, 500)
READ, STEP = 100, 4


def code_after(heading: str, language: str, page: str) -> str:
    """Return the first code block in a language after a heading."""
    text = (TUTORIAL / page).read_text(encoding="utf-8").partition(heading)[2]
    found = re.search(rf"\.\. code:: {language}\n\n((?:    .*\n|\s*\n)+)", text)
    assert found is not None
    return dedent(found[1])


def write_data(folder: Path) -> None:
    """Write an indexed genome, and the reads of two samples that differ from it at `VARIANTS`."""
    dice = random.Random(1)
    genome = dice.choices("ACGT", k=10_000)
    sample = genome.copy()
    for place in VARIANTS:
        sample[place - 1] = {"A": "C", "C": "A", "G": "T", "T": "G"}[genome[place - 1]]
    (folder / "data/samples").mkdir(parents=True)
    (folder / "data/genome.fa").write_text(">I\n" + "".join(genome) + "\n")
    subprocess.run(["bwa", "index", "data/genome.fa"], cwd=folder, check=True, capture_output=True)
    for name in "AB":
        reads = ("".join(sample[at : at + READ]) for at in range(0, len(sample) - READ, STEP))
        lines = (f"@{name}{n}\n{read}\n+\n{'I' * READ}\n" for n, read in enumerate(reads))
        (folder / f"data/samples/{name}.fastq").write_text("".join(lines))


def test_the_tutorial_runs_unchanged_beside_a_rule_with_a_qpu(tmp_path: Path, sandbox: Sandbox):
    project = Project(tmp_path, sandbox, limit=250)
    project.write(code_after("Summary\n", "python", "advanced.rst.txt") + QUANTUM)
    (tmp_path / "config.yaml").write_text(code_after("Summary\n", "yaml", "advanced.rst.txt"))
    script = code_after("Create the file ``scripts/plot-quals.py``", "python", "basics.rst.txt")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/plot-quals.py").write_text(script)
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    write_data(tmp_path)

    output = project.run("--slurm-qpu-mark-all", "all", "result.json")

    calls = [line.split("\t") for line in project.read("calls/all.vcf").splitlines()]
    assert [int(row[1]) for row in calls if row[0] == "I"] == list(VARIANTS)
    assert "<svg" in project.read("plots/quals.svg")
    assert '"1": 100' in project.read("result.json")
    mapped_sorted_indexed, called_plotted = 3 * 2, 2
    assert output.count("has been submitted") == mapped_sorted_indexed + called_plotted + 1
    assert len(submitted(output)) == 1
