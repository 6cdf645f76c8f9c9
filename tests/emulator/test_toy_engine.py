"""A third engine, in one file (tests/plugins/toy_engine), on the toy scheduler and the toy QPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

PLUGINS = Path(__file__).parents[1] / "plugins"
PATHS = [str(PLUGINS / name) for name in ("toy_engine", "toy_scheduler", "toy_vendor")]
SAMPLE = str(PLUGINS / "toy_engine" / "sample.py")
SWEEP = str(PLUGINS / "toy_engine" / "sweep.py")
SITE = """
scheduler = "toy"
[qpus.toy_1]
lanes = 3
"""
WORKFLOW = """
import sys
from pathlib import Path
from toy_engine import Step, run_workflow

def sample(name):
    command = [sys.executable, {sample!r}, f"{{name}}.json", f"{{name}}.result"]
    return Step(qpu="toy_1", command=command, output=Path(f"{{name}}.result"))

run_workflow([sample("a"), sample("b")], Path("jobs"))
"""


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Emulator]:
    """Emulate one QPU of the toy vendor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        with start_emulator(tmp_path / "emulator", ("toy_1=toy-qpu",)) as running:
            yield running


@pytest.fixture
def user(toys: Emulator, tmp_path: Path) -> dict[str, str]:
    """The environment of a user at a site whose scheduler is the toy."""
    for name in ("jobs", "queue"):
        (tmp_path / name).mkdir()
    for name, bits in (("a", "01"), ("b", "10")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"toy_bits": bits, "toy_shots": 9}))
    (tmp_path / "site.toml").write_text(SITE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join(PATHS),
        "TOY_FOLDER": str(tmp_path / "queue"),
        "QPU_CONFIG": str(toys.config_path),
        "QPU_SITE": str(tmp_path / "site.toml"),
        "QPU_STATE": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }


def start(user: dict[str, str], program: str) -> subprocess.Popen[str]:
    """Start a workflow in the user's home folder."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=user,
        cwd=user["HOME"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(user: dict[str, str], program: str) -> tuple[int, str, str]:
    """Run a workflow; return its exit code and what it printed."""
    process = start(user, program)
    stdout, stderr = process.communicate(timeout=90)
    return process.returncode, stdout, stderr


def workflow_of(command: str) -> str:
    """Return a workflow of one step that runs a shell command, and writes the file `out`."""
    return f"""
from pathlib import Path
from toy_engine import Step, run_workflow
command = ["bash", "-c", {command!r}]
run_workflow([Step(qpu="toy_1", command=command, output=Path("out"))], Path("jobs"))
"""


def records(user: dict[str, str], *options: str) -> list[dict[str, object]]:
    """Return the recorded tasks of open steps, or of archived ones."""
    argv = [sys.executable, "-m", "qrmi_workflows", "journal", "list", "--json", *options]
    done = subprocess.run(argv, env=user, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def counts(user: dict[str, str], name: str) -> dict[str, int]:
    result = json.loads(Path(user["HOME"], f"{name}.result").read_text())
    return dict(result["data"][0]["registers"]["toy"]["counts"])


def test_a_workflow_runs_each_step_under_a_lease(user: dict[str, str], toys: Emulator) -> None:
    """Results are written, lease records shown, and the steps archived; a rerun has no work."""
    program = WORKFLOW.format(sample=SAMPLE)

    code, stdout, stderr = run(user, program)
    again = run(user, program)

    assert code == 0, stderr
    assert (counts(user, "a"), counts(user, "b")) == ({"01": 9}, {"10": 9})
    assert stdout.count("QPU toy_1: ") == 2
    assert stdout.count("tasks: 1 (") == 2
    assert records(user) == []
    assert len(records(user, "--archived")) == 2
    assert again == (0, "", "")
    assert toys.counters()["tasks"]["accepted"] == 2


def test_what_a_lost_node_had_submitted_is_found_by_the_rerun(
    user: dict[str, str], toys: Emulator
) -> None:
    """The engine and its job are killed; the task is paid for once."""
    program = WORKFLOW.format(sample=SAMPLE)
    toys.control.ask("PATCH", "/qpus/toy_1", {"availability": "paused"})
    engine = start(user, program)
    wait_until(
        lambda: [record for record in records(user) if record["state"] == "submitted"],
        "the record of the submitted task",
    )
    engine.kill()
    engine.communicate()
    (job,) = Path(user["TOY_FOLDER"]).glob("toy-*")
    os.killpg(int(job.read_text().split()[1]), signal.SIGKILL)
    toys.control.ask("PATCH", "/qpus/toy_1", {"availability": "online"})

    code, _, stderr = run(user, program)

    assert code == 0, stderr
    assert counts(user, "a") == {"01": 9}
    assert toys.counters()["tasks"]["accepted"] == 2


def test_a_step_that_failed_keeps_its_records(user: dict[str, str], toys: Emulator) -> None:
    """Its task has succeeded, so the rerun takes the result from the journal."""
    sample = f"{sys.executable} {SAMPLE} a.json a.result"

    code, _, stderr = run(user, workflow_of(f"{sample}; exit 3"))
    assert code == 1
    assert "failed: job toy-" in stderr
    assert [record["state"] for record in records(user)] == ["completed"]

    assert run(user, workflow_of(f"{sample} && touch out"))[0] == 0
    assert records(user) == []
    assert toys.counters()["tasks"]["accepted"] == 1


def test_the_command_gets_the_variables_of_its_step(user: dict[str, str]) -> None:
    """The step's name, the QPU's lanes, and the scheduler's KillWait."""
    names = ("QPU_STEP", "QPU_LANES", "QPU_KILL_WAIT", "QRMI_JOB_QPU_RESOURCES")
    text = " ".join(f"[${name}]" for name in names)

    assert run(user, workflow_of(f'echo "{text}" > out'))[0] == 0

    out = Path(user["HOME"], "out")
    assert out.read_text() == f"[toy-engine {out}] [3] [20.0] [toy_1]\n"


def test_several_steps_share_the_lease_of_one_job(user: dict[str, str], toys: Emulator) -> None:
    """Each has records of its own, which are archived when it has succeeded."""
    command = f"{sys.executable} {SWEEP} a.json b.json && touch out"

    code, stdout, stderr = run(user, workflow_of(command))

    assert code == 0, stderr
    assert (counts(user, "a"), counts(user, "b")) == ({"01": 9}, {"10": 9})
    assert "tasks: 2 (" in stdout
    steps = {record["step"] for record in records(user, "--archived")}
    assert steps == {f"sweep {user['HOME']}/{name}.result" for name in ("a", "b")}


def test_a_qpu_that_is_not_offered_is_refused_without_a_job(user: dict[str, str]) -> None:
    """The error comes from the site policy."""
    code, _, stderr = run(user, workflow_of("touch out").replace("toy_1", "toy_2"))

    assert code == 1
    assert "UnknownQPUError" in stderr
    assert list(Path(user["TOY_FOLDER"]).iterdir()) == []
