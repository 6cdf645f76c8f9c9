"""The administrators' page is right about Slurm, on a real Slurm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import blocks

from qrmi_workflows.schedulers.command import require_success, run_command

PAGE = Path(__file__).parents[2] / "docs" / "site.md"


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
