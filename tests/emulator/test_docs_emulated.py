"""The page about emulated QPUs: its commands and programs run as printed, without any site."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import blocks, blocks_with_kinds

from qrmi_workflows import QuantumResult
from qrmi_workflows.vendors.emulated import find_emulated

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "emulated.md"
BELL = ROOT / "examples" / "bell"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a folder with the example's files, and hide all sites."""
    for name in ("QPU_CONFIG", "QPU_SITE", "XDG_CONFIG_HOME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "QPU_STATE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", tools)
    monkeypatch.chdir(tmp_path)
    for name in ("bell.json", "Snakefile"):
        shutil.copy(BELL / name, tmp_path)
    (profile,) = blocks(PAGE, "yaml")
    (tmp_path / "rehearsal").mkdir()
    (tmp_path / "rehearsal" / "config.yaml").write_text(profile)
    return tmp_path


def test_all_blocks_of_the_page_are_run() -> None:
    kinds = [kind for kind, _ in blocks_with_kinds(PAGE)]
    assert kinds == ["sh", "python", "sh", "sh", "yaml", "python"]


@pytest.mark.slow
def test_its_commands_run(nowhere: Path) -> None:
    first, second, third = blocks(PAGE, "sh")
    unnamed = "sed -i 's/ --qpu {resources.qpu_name}//' Snakefile\n"

    for script in (f"{first}\nrm bell.result.json\n{second}", unnamed + third):
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        runs = script.count("snakemake --cores")
        assert done.stderr.count("1 of 1 steps (100%) done") == runs, done.stderr
        assert QuantumResult.load("bell.result.json").qpu == "emulated:fez"


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_its_programs_run(nowhere: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"payload": json.loads((nowhere / "bell.json").read_text())}
    exec(compile(blocks(PAGE, "python")[number], "page", "exec"), names)  # noqa: S102
    assert set(names["counts"]) == {"00", "11"}


def test_the_names_on_the_page_are_those_of_models() -> None:
    text = PAGE.read_text()
    for name in set(re.findall(r"`(emulated:[\w:-]+)`", text)):
        found = find_emulated(name)
        if name in ("emulated:fez", "emulated:fez:noisy", "emulated:FRESNEL"):
            assert f"`{found.resource_id}`" in text
