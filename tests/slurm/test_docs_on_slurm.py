"""What the pages say about Slurm is right, on a real Slurm."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from pages import blocks
from waiting import wait_until

from qrmi_workflows.lease.stage import find_stage
from qrmi_workflows.schedulers.command import require_success, run_command

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "site.md"


@pytest.mark.slurm
@pytest.mark.usefixtures("in_sandbox")
def test_the_options_of_the_policies_on_the_page_are_granted():
    """All but `--qpu`, which needs upstream's SPANK plugin."""
    shown = re.findall(r"# sbatch (--\S+)", PAGE.read_text(encoding="utf-8"))
    options = [option.rstrip(":") for option in shown if not option.startswith("--qpu=")]
    assert [option.partition("=")[0] for option in options] == ["--gres", "--licenses"]

    argv = ["sbatch", "--wait", "--output=/dev/null", *options, "--wrap=true"]
    require_success(run_command(argv, timeout=60))


@pytest.mark.slurm
def test_the_slurm_conf_on_the_page_is_that_of_a_running_cluster(in_sandbox):
    (block,) = blocks(PAGE, "conf")
    shown = dict(pair.partition("=")[::2] for pair in block.split() if "=" in pair)
    running = run_command(["scontrol", "show", "config"], timeout=30).stdout
    nodes = run_command(["scontrol", "show", "node"], timeout=30).stdout

    assert set(shown) == {"GresTypes", "Licenses", "NodeName", "Gres"}
    assert re.search(rf"^GresTypes\s*= {shown['GresTypes']}$", running, re.MULTILINE)
    licences = re.search(r"^Licenses\s*= (\S+)$", running, re.MULTILINE)
    assert set(licences[1].split(",")) == set(shown["Licenses"].split(","))
    assert set(shown["Gres"].split(",")) in [
        set(found.split(",")) for found in re.findall(r"Gres=(\S+)", nodes)
    ]


@pytest.mark.slurm
@pytest.mark.usefixtures("in_sandbox")
def test_the_commands_of_the_page_about_stages_run(tmp_path, monkeypatch):
    """Those in its text, too, which look at a stage."""
    page = DOCS / "stages.md"
    (opening,), (job,) = blocks(page, "sh"), blocks(page, "bash")
    opened, *rest = opening.splitlines()
    spans = set(re.findall(r"`(qpu stage (?:list|show)[^`]*)`", page.read_text(encoding="utf-8")))
    assert spans == {"qpu stage list", "qpu stage show vqe"}
    (tmp_path / "job.sh").write_text(job)
    (tmp_path / "vqe.py").write_text(
        "from qrmi_workflows import open_lease\n"
        "with open_lease() as lease:\n    print('adopted', lease.held.is_adopted)\n"
    )
    script = "\n".join(["set -e", f"{opened} --wait", *spans, *rest])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))

    done = require_success(run_command(["sh", "-c", script]))

    assert "stage vqe of ibm_fez: ready" in done.stdout
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]
    wait_until(lambda: find_stage("vqe").is_ended, "the stage's end")
    assert find_stage("vqe").reason == "closed"
    assert Path(f"slurm-{number}.out").read_text() == "adopted True\n"
