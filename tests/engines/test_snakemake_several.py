"""Snakemake jobs that hold several QPUs, on a real Slurm."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from snakemake_runs import PAYLOAD, Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

# A program for QRMI's contract alone, which knows nothing of this package.
PLAIN = """
from qrmi.primitives import QRMIService

print(sorted(resource.resource_id() for resource in QRMIService().resources()))
"""


def test_a_job_and_a_group_hold_all_qpus_that_they_name(sandbox: Sandbox, tmp_path: Path):
    project = Project(tmp_path, sandbox)
    (tmp_path / "one.json").write_text(json.dumps(PAYLOAD))
    project.write(
        f"""
        rule all:
            input: "one.result.json", "after.txt"
        rule both:
            input: "one.json"
            output: "one.result.json", "seen.txt", "refused.txt"
            resources: qpu=1, qpu_name="ibm_fez+FRESNEL"
            shell:
                '''
                (scontrol show job $SLURM_JOB_ID; env; {sys.executable} plain.py) > {{output[1]}}
                qpu run {{input}} -o {{output[0]}} 2> {{output[2]}} && exit 1
                qpu run {{input}} -o {{output[0]}} --qpu ibm_fez
                '''
        rule after:
            input: "member.txt"
            output: "after.txt"
            group: "g"
            resources: qpu=1, qpu_name="FRESNEL"
            shell: "env > {{output}}"
        rule member:
            output: "member.txt"
            group: "g"
            resources: qpu=1, qpu_name="FRESNEL+ibm_fez"
            shell: "env > {{output}}"
        """,
        plain=PLAIN,
    )
    opened, _ = project.sessions()

    output = project.run()

    seen = project.read("seen.txt")
    assert re.search(r"TresPerNode=gres[:/]qpu:ibm_fez:1,gres[:/]qpu:FRESNEL:1\n", seen)
    assert re.search(r"Licenses=qpu_ibm_fez:1,qpu_FRESNEL:1\b", seen)
    assert "\nQRMI_JOB_QPU_RESOURCES=ibm_fez,FRESNEL\n" in seen
    assert "\nQRMI_JOB_QPU_TYPES=ibm-quantum-compute-service,pasqal-cloud\n" in seen
    assert "['FRESNEL', 'ibm_fez']" in seen
    assert "no QPU named, and this job was granted 2: FRESNEL, ibm_fez. Name one" in project.read(
        "refused.txt"
    )
    assert json.loads(project.read("one.result.json"))["qpu"] == "ibm_fez"
    assert "for QPU ibm_fez+FRESNEL (log: " in output
    for name in ("member.txt", "after.txt"):
        assert "\nQRMI_JOB_QPU_RESOURCES=FRESNEL,ibm_fez\n" in project.read(name)
    assert project.sessions() == (opened + 2, 0), "FRESNEL's are the client's own"
