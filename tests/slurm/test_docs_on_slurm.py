"""What the pages say about Slurm is right, on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from pages import blocks
from waiting import WAIT_SECONDS, wait_until

from qrmi_workflows import QuantumResult
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
    require_success(run_command(argv, timeout=WAIT_SECONDS))


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
    spans = set(re.findall(r"`(qpu stage (?:list|show \w+))`", page.read_text(encoding="utf-8")))
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

    done = require_success(run_command(["sh", "-c", script], timeout=110))

    assert "stage vqe of ibm_fez: ready" in done.stdout
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]
    wait_until(lambda: find_stage("vqe").is_ended, "the stage's end")
    assert find_stage("vqe").reason == "closed"
    assert Path(f"slurm-{number}.out").read_text() == "adopted True\n"


NEXTFLOW = """#!/bin/sh
# What Nextflow's Slurm executor does: `clusterOptions` becomes a directive of its job script.
options=${3#--ibm_fez=}
{
    printf '#!/bin/bash\\n#SBATCH %s\\n' "$options"
    grep 'qpu run' main.nf | sed 's/\\$circuit/bell.json/'
} > command.run
exec sbatch --wait command.run
"""


@pytest.mark.slurm
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("in_sandbox")
def test_the_commands_of_the_page_about_other_tools_run(tmp_path, monkeypatch):
    """By sbatch and make; in place of Nextflow, a script submits its job."""
    page = DOCS / "request.md"
    (asking,) = blocks(page, "console")
    sbatch, nextflow, make = blocks(page, "sh")
    bell = DOCS.parent / "examples" / "bell" / "bell.json"
    (tmp_path / "bell.json").write_text(bell.read_text())
    for name, kind in (("job.sh", "bash"), ("main.nf", "groovy"), ("Makefile", "make")):
        (tmp_path / name).write_text(*blocks(page, kind))
    (tmp_path / "nextflow").write_text(NEXTFLOW)
    (tmp_path / "nextflow").chmod(0o755)
    path = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    command, shown = asking.removeprefix("$ ").splitlines()
    assert require_success(run_command(["sh", "-c", command])).stdout.strip() == shown
    results = {sbatch: "bell.result.json", nextflow: "result.json", make: "bell.result.json"}
    for line, result in results.items():
        require_success(run_command(["sh", "-c", line], timeout=WAIT_SECONDS))
        assert QuantumResult.load(result).qpu == "ibm_fez"
        Path(result).unlink()


@pytest.mark.slurm
@pytest.mark.usefixtures("in_sandbox")
def test_the_commands_of_the_page_about_the_doctor_run(tmp_path, monkeypatch):
    """At a site that grants ibm_fez by a GRES on two nodes, and nothing else."""
    page, policy = DOCS / "doctor.md", tmp_path / "policy.toml"
    (examining,), (proposing,) = blocks(page, "console"), blocks(page, "sh")
    policy.write_text('[qpus.ibm_fez]\ngres = "qpu:{qpu}"\n')
    monkeypatch.setenv("QPU_SITE", str(policy))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    command, *shown = examining.removeprefix("$ ").splitlines()
    done = run_command(["sh", "-c", command])
    assert done.returncode == 1
    assert done.stdout.replace(str(policy), "/etc/qrmi-workflows/site.toml").splitlines() == shown

    require_success(run_command(["sh", "-c", proposing]))
    checking = re.search(r"run `(QPU_SITE=\S+ qpu doctor)`", page.read_text(encoding="utf-8"))
    require_success(run_command(["sh", "-c", checking[1]]))


def test_the_page_about_the_doctor_lists_all_checks():
    """By the names that the code gives to findings."""
    core = DOCS.parent / "qrmi_workflows"
    files = [*core.glob("site/doctor*.py"), *core.glob("schedulers/slurm_*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    rows = re.findall(r"^\| (`.*?`) \|", (DOCS / "doctor.md").read_text(), re.MULTILINE)

    used = set(re.findall(r"(?:Finding\.\w+|_refused)\(\s*\"(\w+)\"", text)) - {"scheduler"}
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == used


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(300)
def test_the_command_of_the_page_of_measurements_measures(tmp_path):
    """One of its measurements, in a small size, and without rewriting the page."""
    page = (DOCS / "stages-measured.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(python\s+benchmarks/stages\.py) --docs`", page)
    small = ("--only", "fan_out", "--factor", "60", "--size", "0.05", "--out", str(tmp_path))

    done = run_command([sys.executable, *command.split()[1:], *small], timeout=240)

    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))["fan_out"]
    assert measured["dedicated session per job"]["sessions"] == measured["tasks"]
    assert measured["batch stage, coalesced"]["sessions"] == 1
    assert "| goal |" in (tmp_path / "stages.md").read_text(encoding="utf-8")
