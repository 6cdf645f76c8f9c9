"""The commands on the pages about a site's budgets and scripts run, for a site in a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import blocks

from qrmi_workflows.budgets.limits import read_limits
from qrmi_workflows.emulator import Emulator

DOCS = Path(__file__).parents[2] / "docs"
BUDGETS = DOCS / "budgets.md"
SCRIPTS = DOCS / "site-scripts.md"

Shell = Callable[[str], str]


@pytest.fixture
def shell(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run commands in a folder, at a site with the policy that the page about budgets shows."""
    (policy,) = blocks(BUDGETS, "toml")
    (tmp_path / "site.toml").write_text(
        policy.replace("/shared/qpu", str(tmp_path))
        + f'state = "{tmp_path}/root"\n[qpus.ibm_fez]\ngres = "qpu:{{qpu}}"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(script: str) -> str:
        argv = ["bash", "-xec", script]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_budgets_of_the_page_are_set_and_shown(shell: Shell, tmp_path: Path) -> None:
    *_, setting = blocks(BUDGETS, "sh")

    shown = shell(setting)
    limits = read_limits(tmp_path / "budgets")

    assert [limit.describe() for limit in limits] == ["user *", "user ada"]
    assert "account chem" not in shown
    assert "user" in shell("qpu budget show")


def test_the_estimate_on_the_page_is_right(shell: Shell, tmp_path: Path) -> None:
    (asking,) = blocks(BUDGETS, "console")
    command, *answer = asking.removeprefix("$ ").splitlines()
    (tmp_path / "circuit.qasm").write_text(
        'OPENQASM 3.0;\ninclude "stdgates.inc";\nbit[1] meas;\nsx $0;\nmeas[0] = measure $0;\n'
    )

    assert shell(command).splitlines() == answer


def test_leases_get_the_budgets_of_the_page(shell: Shell, tmp_path: Path) -> None:
    """A stage needs a scheduler: tests/faults/test_stages.py."""
    exec_line, stage_line, export = blocks(BUDGETS, "sh")[0].splitlines()
    (block,) = blocks(BUDGETS, "python")
    (tmp_path / "vqe.py").write_text("from qrmi_workflows import open_lease\nopen_lease()\n")

    shell(f"{export}\n{exec_line}")
    (tmp_path / "block.py").write_text(f"from qrmi_workflows import open_lease\n{block}")
    shell("python block.py")

    assert re.fullmatch(r"qpu stage open \w+ --qpu ibm_fez --budget \"10 min\"", stage_line)
    assert "--budget" in shell("qpu stage open --help")


def test_the_page_about_scripts_installs_them_and_takes_them_back(
    shell: Shell, tmp_path: Path
) -> None:
    text = " ".join(SCRIPTS.read_text(encoding="utf-8").split())
    spans = list(dict.fromkeys(re.findall(r"`(qpu site [a-z]+(?: --write)?)`", text)))
    assert spans == ["qpu site install", "qpu site install --write", "qpu site uninstall --write"]
    conf = tmp_path / "etc" / "slurm" / "slurm.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("ClusterName=x\nNodeName=n1 CPUs=4\n")
    policy = tmp_path / "etc" / "qrmi-workflows" / "site.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text((tmp_path / "site.toml").read_text())
    options = f"--prefix {tmp_path} --slurm-conf /etc/slurm/slurm.conf"
    printing, installing, taking_back = (f"{span} {options}" for span in spans)

    assert "/etc/qrmi-workflows/slurm/prolog" in shell(printing)
    assert "Prolog" not in conf.read_text()
    shell(installing)
    assert "Prolog=/etc/qrmi-workflows/slurm/prolog" in conf.read_text()
    shell(taking_back)
    assert conf.read_text() == "ClusterName=x\nNodeName=n1 CPUs=4\n"


def test_the_reaper_of_the_pages_runs_as_on_a_timer(shell: Shell) -> None:
    """Nothing is open, so it asks no scheduler; on Slurm: tests/slurm/test_site_scripts.py."""
    for page in (SCRIPTS, DOCS / "site.md"):
        assert "qpu reap --all" in page.read_text(encoding="utf-8")

    assert shell("qpu reap --all --states '/nowhere/*'") == ""
