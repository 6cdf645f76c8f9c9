"""The plugin's pages are true: the rules they show run, and the settings they name exist."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pulser
import pytest
from pages import blocks
from snakemake_runs import BELL, PAYLOAD, Project, submitted

from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm_options import qpu_options
from snakemake_executor_plugin_slurm_qpu import ExecutorSettings

EXTENSION = Path(__file__).parents[2] / "snakemake_ext"
INTRO, FURTHER = (EXTENSION / "docs" / name for name in ("intro.md", "further.md"))
RULES = ""  # blocks with rules name no language, because highlighters do not know Snakemake


def pulses() -> dict[str, Any]:
    """Return a payload for FRESNEL: one pulse on one atom."""
    device = dataclasses.replace(pulser.AnalogDevice, name="FRESNEL")
    register = pulser.Register.from_coordinates([(0, 0)], prefix="q")
    sequence = pulser.Sequence(register.with_automatic_layout(device), device)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(500, 6.28, 0, 0), "global")
    sequence.measure()
    return {"sequence": json.loads(sequence.to_abstract_repr()), "job_runs": 50}


@pytest.mark.slurm
@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_rules_and_programs_shown_run_with_the_command_shown(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    project = Project(tmp_path, sandbox)
    (shown,), (command,) = blocks(INTRO, RULES), blocks(INTRO, "console")
    (program,) = blocks(FURTHER, "python")
    rules = [block for block in blocks(FURTHER, RULES) if "rule " in block]
    assert rules[0] == shown
    project.write(
        "".join(sorted(rules, key=lambda block: "default_target" not in block)),
        vqe="import json\n"
        'payload = json.load(open("bell.json"))\n'
        f"{program}"
        "json.dump(dict(result.counts()), open(snakemake.output[0], 'w'))\n",
        propose='import shutil\nshutil.copy("bell.json", snakemake.output[0])\n',
    )
    (tmp_path / "bell.json").write_text(json.dumps(PAYLOAD))
    (tmp_path / "bell.qasm").write_text(BELL)

    program_name, *options = shlex.split(command.removeprefix("$ "))
    (tmp_path / "pulses.json").write_text(json.dumps(pulses()))
    (tmp_path / "compare.json").write_text(json.dumps(PAYLOAD))
    targets = ["all", "bell.result.json", "energy.json", "loop/1.result.json"]
    targets += ["any.result.json", "compare.result.json"]
    output = project.run(*options, "--slurm-qpu-mark-all", *targets)

    assert program_name == "snakemake"
    assert len(submitted(output)) == 6
    assert '"qpu": "ibm_fez"' in project.read("any.result.json")
    assert '"qpu": "ibm_fez"' in project.read("compare.result.json")
    assert '"qpu": "FRESNEL"' in project.read("pulses.result.json")
    assert json.loads(project.read("energy.json")) == {"1": 100}
    assert '"1": 100' in project.read("bell.result.json")
    assert '"1": 100' in project.read("loop/1.result.json")
    assert '"ibm_fez"' in project.read("bell.samples.json")


def test_the_policy_shown_grants_what_the_page_says(tmp_path: Path) -> None:
    (shown,) = blocks(FURTHER, "toml")
    (tmp_path / "site.toml").write_text(shown)
    site = load_site_policy(tmp_path / "site.toml")

    granted = ["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]
    assert qpu_options(QPURequest(qpu="ibm_fez"), site.qpu("ibm_fez")) == granted
    options = qpu_options(QPURequest(qpu="FRESNEL"), site.qpu("FRESNEL"))
    assert "--partition=quantum" in options


def test_the_settings_named_exist() -> None:
    known = {f"--slurm-qpu-{field.name.replace('_', '-')}" for field in fields(ExecutorSettings)}
    profile = (EXTENSION / "profile" / "config.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"--slurm-qpu-[a-z-]*[a-z]", INTRO.read_text() + FURTHER.read_text()))
    named |= {f"--{name}" for name in re.findall(r"^(slurm-qpu-[a-z-]+):", profile, re.MULTILINE)}

    assert len(named) > 4
    assert named <= known
