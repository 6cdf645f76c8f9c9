"""Parsl's own tests on our provider, launcher and executor: `make test-parsl-suite`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from parsl_runs import Site, processes_with
from waiting import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.parsl_suite]

HERE = Path(__file__).parent
VENV = HERE.parents[1] / ".venv-parsl"
STOCK_PASSES = 143
"""How many pass with Parsl's own executor and provider; others need a network or another user."""


@pytest.fixture
def environ(parsl_site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment for the suite, which its blocks and their processes inherit."""
    monkeypatch.delenv("PYTHONPATH")
    return {**os.environ, "PATH": f"{VENV}/bin:{os.environ['PATH']}"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", ["plain", "mixed"])
def test_parsls_own_tests_pass_in_blocks_that_hold_the_qpu(
    parsl_site: Site, environ: dict[str, str], config: str
):
    assert VENV.is_dir(), "no .venv-parsl: run `make test-parsl-suite`"
    (suite,) = VENV.glob("lib/python*/site-packages/parsl/tests")
    before = parsl_site.sessions()
    argv = [
        VENV / "bin/python", "-m", "pytest", suite, "-c", os.devnull, f"--rootdir={suite}",
        "--config", HERE / f"parsl_suite_{config}.py", "-q", "-rfE", "-p", "no:cacheprovider",
        "-k", "not cleannet and not unix_filesystem_permissions_required",
    ]  # fmt: skip

    done = subprocess.run(
        argv, cwd=parsl_site.folder, env=environ, capture_output=True, text=True, timeout=240
    )

    print(done.stdout, done.stderr)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z]+)", done.stdout[-200:])}
    assert counts["passed"] >= STOCK_PASSES
    assert done.returncode == 0
    wait_until(lambda: not parsl_site.jobs(), "the block's job to end")
    sessions = parsl_site.sessions()
    assert sessions["opened"] > before["opened"]
    assert sessions["open"] == 0
    alive = psutil.wait_procs(processes_with("QPU_STATE"), timeout=5)[1]
    assert [process.cmdline() for process in alive] == []
