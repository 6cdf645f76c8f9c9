"""Fixtures that the Parsl tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_site import emulated_site
from parsl_runs import EMULATOR, Site
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox


@pytest.fixture(scope="session")
def parsl_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox with the QPUs that the Parsl tests use."""
    with emulated_site(tmp_path_factory.mktemp("parsl"), EMULATOR) as box:
        yield box


@pytest.fixture
def parsl_site(
    parsl_box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Point this process's environment to the sandbox; jobs can import the tests' modules."""
    for name, value in parsl_box.environment().items():
        monkeypatch.setenv(name, value)
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{programs}")
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}:{here.parents[1]}")
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    site = Site(parsl_box, tmp_path)
    yield site
    wait_until(lambda: not site.jobs(), "the test's jobs to end")
