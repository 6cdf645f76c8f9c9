"""The same step in each tool: one payload, one constraint, one result."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pages import blocks_with_kinds
from snakemake_runs import PAYLOAD, Project

from qrmi_workflows import Payload, QuantumResult
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines]

PAGE = Path(__file__).parents[2] / "docs/features.md"


@pytest.fixture
def project(sandbox: Sandbox, tmp_path: Path) -> Project:
    """A folder with the payload; what runs there finds the sandbox's commands."""
    (tmp_path / "bell.json").write_text(json.dumps(PAYLOAD))
    found = Project(tmp_path, sandbox, limit=150)
    found.environ |= {"QPU_STATE": str(tmp_path / "state"), "SBATCH_OUTPUT": "/dev/null"}
    return found


def run(project: Project, *argv: str) -> None:
    """Run a command in the folder, which must succeed."""
    done = subprocess.run(
        argv, cwd=project.folder, env=project.environ, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["Snakemake", "Parsl", "qpu", "sbatch"])
@pytest.mark.timeout(200)
def test_the_step_of_the_page_has_the_same_result(project: Project, tool: str):
    shown = PAGE.read_text(encoding="utf-8").partition(f"### {tool}\n")[2].partition("\n##")[0]
    page = project.folder / "page.md"
    page.write_text(f"{shown}\n")
    for kind, block in blocks_with_kinds(page):
        if kind == "":
            (project.folder / "Snakefile").write_text(block)
        elif kind == "bash":
            (project.folder / "job.sh").write_text(block)
        elif kind == "sh":
            run(project, "sh", "-ec", block)
        else:
            (project.folder / "program.py").write_text(block)
            run(project, "python", "program.py")

    result = QuantumResult.load(project.folder / "bell.result.json")
    digest = Payload.from_file(project.folder / "bell.json").digest
    assert (result.qpu, result.type) == ("ibm_fez", "ibm-quantum-compute-service")
    assert (result.program, result.payload_digest) == ("sampler", digest)
    assert result.counts() == {"1": 100}
    assert Journal(project.folder / "state" / "journal").find(result.task_id) is not None
