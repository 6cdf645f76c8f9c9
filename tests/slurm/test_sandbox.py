"""The sandbox: a real Slurm and the emulator, started, used and ended."""

from __future__ import annotations

import subprocess

import pytest

from qrmi_workflows.sandbox import Sandbox

pytestmark = pytest.mark.slurm


@pytest.mark.usefixtures("in_sandbox")
def test_sinfo_finds_the_sandbox() -> None:
    """With the environment applied, sinfo shows its two nodes and the GRES of its QPUs."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%D %G"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "qpu:ibm_fez:1,qpu:FRESNEL:1"]


def test_status_of_a_sandbox_that_is_up(sandbox: Sandbox) -> None:
    """All five daemons run."""
    status = sandbox.status()
    assert status.state == "up"
    names = [daemon.name for daemon in status.daemons]
    assert names == ["emulator", "munged", "slurmctld", "slurmd-n1", "slurmd-n2"]
