"""The commands and snippets of the pages for users run as printed.

The files and circuits that a snippet expects are made here. Commands in backticks in the text run
too. A command with a new kind of argument fails until `runnable` knows a value for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pulser
import pytest
from pages import blocks, blocks_with_kinds
from qiskit import QuantumCircuit

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.results import result_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("payloads.md", "leases.md", "result-file.md", "site.md", "choosing.md")
ELSEWHERE = {
    *("features.md", "reservations.md"),  # tests/engines
    "accounting.md",  # tests/slurm/test_accounting_on_slurm.py
    *("budgets.md", "site-scripts.md"),  # tests/emulator/test_docs_of_a_site_run.py
    "parsl.md",  # tests/engines/test_parsl_examples.py
    *("stages.md", "request.md", "doctor.md"),  # tests/slurm/test_docs_on_slurm.py
    "admission.md",  # tests/slurm/test_admission_on_slurm.py
    "stages-measured.md",  # tests/slurm/test_docs_on_slurm.py
    "emulated.md",  # test_docs_emulated.py
    "fail-over.md",  # tests/faults/test_fallback.py
    "emulator.md",  # its commands serve until they are stopped
    *("add-a-vendor.md", "add-a-scheduler.md", "add-an-engine.md"),  # unit/test_docs_plugins.py
    *("architecture.md", "environment.md", "glossary.md"),  # unit/test_reference_pages.py
}
KINDS = {"sh", "python", "json", "toml", "conf"}  # the last two: tests/slurm/test_docs_on_slurm.py
KINDS |= {"bash"}  # tests/slurm/test_choice_on_slurm.py
MENTIONS = {
    *("qpu", "qpu run", "qpu run -o", "qpu run --coalesce", "qpu doctor", "qpu request"),
    "qpu stage open",
    "qpu reap --all",  # test_docs_of_a_site_run.py
}
"""Commands that the pages mention without their required arguments, or that need a site."""

CIRCUIT = """OPENQASM 3.0;
include "stdgates.inc";
bit[2] meas;
sx $0; cz $0, $1; sx $1;
meas[0] = measure $0;
meas[1] = measure $1;
"""


def spans(page: str) -> list[str]:
    """Return the commands between backticks in a page's text."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    found = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return [span for span in found if re.match(r"(qpu|zcat)\b", span) and ":" not in span]


def commands(page: str) -> list[str]:
    """Return the commands in a page's blocks and in its text."""
    in_blocks = [line for block in blocks(DOCS / page, "sh") for line in block.splitlines()]
    return in_blocks + [runnable(span) for span in spans(page) if span not in MENTIONS]


def runnable(span: str) -> str:
    """Complete a command: replace its placeholders, which are in capitals."""
    if span.startswith("qpu lease exec") and " -- " not in span:
        span = f"{span} --qpu ibm_fez -- COMMAND"
    values = {"COMMAND": "true", "TASK": "$TASK", "NAME": "energies", "FILE": "leases.jsonl"}
    return re.sub(r"\b[A-Z]{4,}\b", lambda word: values[word[0]], span)


def sequence_for(device: pulser.devices.Device) -> pulser.Sequence:
    register = pulser.Register.square(2, spacing=6, prefix="q").with_automatic_layout(device)
    sequence = pulser.Sequence(register, device)
    sequence.declare_channel("ising", "rydberg_global")
    pulse = pulser.Pulse.ConstantPulse(400, 4.0, 0.0, 0.0)
    sequence.add(pulse, "ising")
    sequence.measure("ground-rydberg")
    return sequence


@pytest.fixture(scope="module")
def work(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a folder with the files that the pages mention, for a site with both QPUs."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("bell", "a", "b", "c"):
        shutil.copy(ROOT / "examples" / "bell" / "bell.json", folder / f"{name}.json")
    (folder / "circuit.qasm").write_text(CIRCUIT)
    (folder / "observables.json").write_text('{"ZZ": 0.5, "XI": 1.0}')
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", tools)
        patch.setenv("QPU_CONFIG", str(emulator.config_path))
        patch.setenv("QPU_STATE", str(folder / "state"))
        patch.delenv("SLURM_JOB_ID", raising=False)
        with open_lease("FRESNEL") as lease:
            device = lease.pulser_connection().fetch_available_devices()["FRESNEL"]
        sequence = sequence_for(device)
        (folder / "sequence.json").write_text(sequence.to_abstract_repr())
        with open_lease("ibm_fez", step="open") as lease:
            result = lease.run("bell.json")
        result.save("bell.result.json")
        patch.setenv("TASK", result.task_id)
        yield folder


def test_every_page_is_run() -> None:
    """No page and no kind of block is left out."""
    assert {path.name for path in DOCS.glob("*.md")} - ELSEWHERE == set(PAGES)
    for page in PAGES:
        assert {kind for kind, _ in blocks_with_kinds(DOCS / page)} <= KINDS, page


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_run(work: Path, page: str) -> None:
    """Every command of a page succeeds."""
    (work / "r.json").write_text(blocks(DOCS / "result-file.md", "json")[0])
    lines = commands(page)
    assert lines, "the page has no command"
    script = "\n".join(["set -e -o pipefail", *lines])

    done = subprocess.run(["bash", "-xc", script], capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr


def test_payload_commands_write_their_result_files(work: Path) -> None:
    """Each `-o` file holds a result of the right program."""
    outputs = re.findall(r"-o (\S+)", blocks(DOCS / "payloads.md", "sh")[0])
    assert len(outputs) == 3
    if not (work / outputs[-1]).exists():
        test_its_commands_run(work, "payloads.md")

    programs = [QuantumResult.load(name).program for name in outputs]
    assert programs == ["sampler", "estimator", "pulser"]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(DOCS / page, "python")])
def test_its_snippets_run(work: Path, page: str) -> None:
    """Every Python block of a page runs and computes what the page says."""
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    if page == "result-file.md":
        test_payload_commands_write_their_result_files(work)
    for block in blocks(DOCS / page, "python"):
        names: dict[str, Any] = {
            "circuit": circuit,
            "make_sequence": sequence_for,
            "sequence": (work / "sequence.json").read_text(),
        }
        exec(compile(block, page, "exec"), names)  # noqa: S102 - the page's own code
        if "counts" in names:
            assert sum(names["counts"].values()) == 1000
            assert set(names["counts"]) == {"00", "11"}
        if "errors" in names:
            assert np.all(np.asarray(names["errors"]) >= 0)


def test_the_printed_result_file_is_valid(work: Path) -> None:
    """It follows the schema and loads."""
    (shown,) = blocks(DOCS / "result-file.md", "json")
    (work / "shown.json").write_text(shown)

    complete = json.loads(shown) | {"payload_digest": "9f2c" * 16}  # the page shortens it
    jsonschema.validate(complete, result_schema())
    assert QuantumResult.load("shown.json").counts() == {"00": 507, "11": 493}


def test_the_printed_site_is_listed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of its QPUs is unknown because their endpoints are placeholders."""
    for kind, variable in (("json", "QPU_CONFIG"), ("toml", "QPU_SITE")):
        (work / f"site.{kind}").write_text(blocks(DOCS / "site.md", kind)[0])
        monkeypatch.setenv(variable, str(work / f"site.{kind}"))

    listed = subprocess.run(["qpu", "list", "--json"], stdout=subprocess.PIPE, check=True)

    offered = {row["name"]: (row["gres"], row["licence"]) for row in json.loads(listed.stdout)}
    assert offered == {
        "FRESNEL": ("qpu:FRESNEL", "qpu_FRESNEL"),
        "ibm_fez": ("qpu:ibm_fez", "qpu_ibm_fez"),
    }
