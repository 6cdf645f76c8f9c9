"""Keepers of stages share the cores of a gateway node, set up as the page says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pages import blocks
from site_under_test import QPU, Site, run
from waiting import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "stages.md"


def set_up_gateway(site: Site) -> int:
    """Give the sandbox the page's partitions, on its own nodes; return the gateway's cores."""
    (conf,) = [block for block in blocks(PAGE, "conf") if "PartitionName=gateway" in block]
    (toml,) = [block for block in blocks(PAGE, "toml") if "gateway" in block]
    written = site.box.directory / "etc" / "slurm.conf"
    text = re.sub(r"^PartitionName=.*\n", "", written.read_text(), flags=re.MULTILINE)
    partitions = re.findall(r"^PartitionName=.*$", conf, re.MULTILINE)
    partitions = [
        line.replace("Nodes=gateway", "Nodes=n2").replace("Nodes=n[1-8]", "Nodes=n1")
        for line in partitions
    ]
    written.write_text(text + "\n".join(partitions) + "\n")
    site.slurm("scontrol", "reconfigure")
    (site.work / "site.toml").write_text(toml)
    return int(re.search(r"NodeName=n2 .*CPUs=(\d+)", text)[1])  # type: ignore[index]


def test_keepers_share_cores_and_the_stage_s_jobs_run_on_compute_nodes(make_site):
    site = make_site()
    cores = set_up_gateway(site)
    policy = str(site.work / "site.toml")
    environ = {**os.environ, **site.box.environment(), "QPU_SITE": policy}

    def qpu(*argv: str) -> str:
        done = run(*QPU[:-1], *argv, environ=environ, cwd=site.work)
        assert done.returncode == 0, done.stderr
        return done.stdout

    others = [
        site.submit("sleep 600", "--partition=gateway", "--oversubscribe") for _ in range(2 * cores)
    ]
    wait_until(
        lambda: site.states().items() >= dict.fromkeys(others, "RUNNING").items(),
        "more jobs than the node has cores",
    )
    qpu("stage", "open", "vqe", "--qpu", "ibm_fez", "--wait")
    (keeper,) = re.findall(r"^(\d+) qpu-keeper-vqe", site.slurm("squeue", "-ho", "%A %j"), re.M)
    use = f"{' '.join(QPU[:-1])} lease exec --stage vqe -- true"
    job = site.submit(use, *qpu("stage", "options", "vqe").split())
    site.wait_for(job)

    assert site.show(int(keeper)).items() >= {"Partition": "gateway", "NodeList": "n2"}.items()
    assert site.show(job).items() >= {"Partition": "main", "NodeList": "n1"}.items()
    qpu("stage", "close", "vqe", "--now")
