"""A site whose Slurm counts a QPU's lanes: jobs share the QPU, each with its own lanes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake_runs import Project

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]


@pytest.fixture
def four_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with one node that has four units of ibm_fez."""
    for name in ("render_slurm_conf", "render_gres_conf"):
        render_one = getattr(render, name)
        monkeypatch.setattr(
            render,
            name,
            lambda site, render_one=render_one: (
                render_one(site)
                .replace("qpu:ibm_fez:1", "qpu:ibm_fez:4")
                .replace("qpu_ibm_fez:1", "qpu_ibm_fez:4")
                .replace("Type=ibm_fez Count=1", "Type=ibm_fez Count=4")
            ),
        )
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.up(nodes=1, qpus=["ibm_fez=ibm-quantum-compute-service:fez"])
    yield sandbox
    sandbox.down(grace=0)


def test_jobs_hold_as_many_lanes_as_they_ask_for(four_lanes: Sandbox, tmp_path: Path):
    project = Project(tmp_path, four_lanes)
    project.write(
        """
        rule all:
            input: "1.txt", "3.txt", "all.txt"
        rule part:
            output: "{n}.txt"
            wildcard_constraints: n="[13]"
            resources: qpu=lambda wildcards: int(wildcards.n)
            shell:
                '''
                touch {wildcards.n}.started
                until test -e 1.started -a -e 3.started; do sleep 0.05; done
                (echo lanes $QPU_LANES; scontrol show job $SLURM_JOB_ID) > {output}
                '''
        rule whole:
            output: "all.txt"
            resources: qpu=1, qpu_exclusive=1
            shell: "(echo lanes $QPU_LANES; scontrol show job $SLURM_JOB_ID) > {output}"
        """
    )

    project.run()

    for name, lanes in {"1": 1, "3": 3, "all": 4}.items():
        shown = project.read(f"{name}.txt")
        assert f"lanes {lanes}\n" in shown
        assert f"qpu:ibm_fez:{lanes}\n" in shown
        assert f"Licenses=qpu_ibm_fez:{lanes}\n" in shown.replace(" ", "\n")


@pytest.mark.slow
def test_the_jobs_of_a_stage_share_the_lanes_that_they_can_use_at_once(
    four_lanes: Sandbox, tmp_path: Path
):
    project = Project(tmp_path, four_lanes)
    project.write(
        """
        rule all:
            input: "1.txt", "2.txt", "3.txt"
        rule part:
            output: "{n}.txt"
            resources: qpu=1, qpu_stage="lanes"
            shell:
                '''
                touch {wildcards.n}.started
                until test -e 1.started -a -e 2.started -a -e 3.started; do sleep 0.05; done
                (echo lanes $QPU_LANES; squeue --format=%j:%b; scontrol show job $SLURM_JOB_ID) \\
                    > {output}
                '''
        """
    )

    project.run()

    shown = project.read("1.txt")
    assert "lanes 1\n" in shown
    assert "qpu-keeper-lanes:gres:qpu:ibm_fez:3\n" in shown
    assert "Licenses=(null)" in shown
    assert project.sessions() == (1, 0)
