"""Jobs whose QPU goes away: the engine submits the step again, for the next QPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import parsl
import pytest
from snakemake_runs import PAYLOAD, Project
from waiting import wait_until

from parsl_ext import qpu_app, qpu_config
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

CONFIG = "".join(
    f"""
[qpus.{name}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
lanes = 2
"""
    for name in ("ibm_away", "ibm_next")
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A cluster with two QPUs of one type, each of which jobs must be granted."""
    folder = tmp_path_factory.mktemp("fallback")
    (folder / "emulator.toml").write_text(CONFIG)
    box = Sandbox(folder / "box")
    box.up(config=folder / "emulator.toml")
    yield box
    box.down(grace=0)


@pytest.fixture
def set_state(site: Sandbox) -> Iterator[Callable[[str], None]]:
    """Set whether the first QPU is online."""
    control = Control(site.directory / "emulator")

    def change(state: str) -> None:
        control.ask("PATCH", "/qpus/ibm_away", {"availability": state})

    yield change
    change("online")


def completed(site: Sandbox) -> dict[str, int]:
    """Count the tasks that each QPU has completed."""
    qpus = Control(site.directory / "emulator").counters()["qpus"]
    return {name: each["tasks"]["completed"] for name, each in qpus.items()}


RULES = """
    rule all:
        input: "two.result.json"
    rule two:
        input: "one.json", "two.json"
        output: "two.result.json"
        resources: qpu=1, qpu_name="ibm_away", qpu_fallback="ibm_next"
        shell:
            '''
            {python} two.py {{input}} {{output}}
            '''
    """
PROGRAM = """
import sys, time
from pathlib import Path
from qrmi_workflows import open_lease

with open_lease() as lease:
    first = lease.run(sys.argv[1])
    Path("first.done").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    second = lease.run(sys.argv[2])
    Path("qpus.txt").write_text(f"{first.qpu} {second.qpu}")
    second.save(sys.argv[3])
"""


def test_snakemake_submits_a_job_again_for_the_next_qpu_without_counting_a_retry(
    site: Sandbox, set_state: Callable[[str], None], tmp_path: Path
):
    """What the first job has completed stays."""
    project = Project(tmp_path, site)
    for name, shots in (("one", 10), ("two", 20)):
        payload = json.loads(json.dumps(PAYLOAD))
        payload["parameters"]["pubs"][0][2] = shots
        (tmp_path / f"{name}.json").write_text(json.dumps(payload))
    project.write(RULES.format(python="python"), two=PROGRAM)
    before = completed(site)
    process = project.start("--retries", "0")
    wait_until((tmp_path / "first.done").exists, "the first task")
    set_state("offline")
    (tmp_path / "go").touch()

    output = project.wait(process)

    assert project.read("qpus.txt") == "ibm_away ibm_next"
    text = " ".join(output.split())  # Snakemake wraps lines
    assert "QPU ibm_away has gone (its vendor reports it offline). It is submitted again" in text, (
        output
    )
    assert output.count("has been submitted with SLURM jobid") == 2
    after = completed(site)
    assert {name: after[name] - before[name] for name in after} == {"ibm_away": 1, "ibm_next": 1}


def test_snakemake_starts_with_the_next_qpu_if_its_own_is_offline(
    site: Sandbox, set_state: Callable[[str], None], tmp_path: Path
):
    set_state("offline")
    project = Project(tmp_path, site)
    (tmp_path / "one.json").write_text(json.dumps(PAYLOAD))
    project.write(
        """
        rule one:
            input: "one.json"
            output: "one.result.json"
            resources: qpu=1, qpu_name="ibm_away", qpu_fallback="ibm_next"
            shell: "qpu run {input} -o {output}"
        """
    )

    output = project.run()

    assert json.loads(project.read("one.result.json"))["qpu"] == "ibm_next"
    assert "for QPU ibm_next; this does not count as a retry" in " ".join(output.split())


@pytest.mark.parametrize(
    ("fallback", "message"),
    [
        ("ibm_nxt", "Did you mean 'ibm_next'"),
        ("ibm_away", "cannot fall back to itself"),
        ("emulated:fez|ibm_next", "an emulated QPU must be the last"),
    ],
)
def test_a_fallback_that_makes_no_sense_never_reaches_slurm(
    site: Sandbox, tmp_path: Path, fallback: str, message: str
):
    project = Project(tmp_path, site)
    project.write(
        f"""
        rule one:
            output: "one.result.json"
            resources: qpu=1, qpu_name="ibm_away", qpu_fallback="{fallback}"
            shell: "touch {{output}}"
        """
    )

    output = project.run(fails=True)

    assert message in " ".join(output.split())
    assert "has been submitted" not in output


def test_a_script_is_told_which_qpu_to_submit_it_for(
    site: Sandbox, set_state: Callable[[str], None], tmp_path: Path
):
    """Submitted as its message says, it runs there."""
    project = Project(tmp_path, site)
    project.environ["QPU_STATE"] = str(tmp_path / "state")
    (tmp_path / "one.json").write_text(json.dumps(PAYLOAD))
    set_state("offline")

    def submit(qpu: str, *options: str) -> str:
        command = f"qpu run one.json -o one.result.json {' '.join(options)}"
        script = tmp_path / f"{qpu}.sh"
        script.write_text(f"#!/bin/bash\n{command} 2>&1\necho ended with $?\n")
        holds = project.slurm("qpu", "request", qpu).split()
        project.slurm(
            "sbatch", "--wait", f"--chdir={tmp_path}", "--output=out", *holds, str(script)
        )
        return project.read("out")

    told = submit("ibm_away", "--fallback=ibm_next")

    assert told.endswith("ended with 75\n")
    found = re.search(r"Submit the step again with `--qpu (\w+)`, and with (\w+)=(\w+) in", told)
    assert found is not None, told
    assert found.groups() == ("ibm_next", "QPU_MOVED_FROM", "ibm_away")
    project.environ[found[2]] = found[3]

    assert submit(found[1], f"--qpu={found[1]}").endswith("ended with 0\n"), project.read("out")
    assert json.loads(project.read("one.result.json"))["qpu"] == "ibm_next"


@qpu_app
def run_two(folder, *, lease):
    """Run a task, wait for a file, and run another one; return their QPUs."""
    import time
    from pathlib import Path

    from parsl_runs import bell

    first = lease.run(bell(10))
    Path(folder, "first.done").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return [first.qpu, lease.run(bell(20)).qpu]


@pytest.mark.timeout(400)
def test_the_next_block_of_parsl_holds_the_next_qpu_and_runs_the_call_again(
    site: Sandbox,
    set_state: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """No retry is allowed: it costs none."""
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}")  # workers import this module
    before = completed(site)
    config = qpu_config(
        "ibm_away", qpu_fallback=["ibm_next"], retries=0, walltime="00:05:00",
        status_polling_interval=1, run_dir=str(tmp_path / "run"), strategy_period=0.3,
    )  # fmt: skip
    with parsl.load(config):
        call = run_two(str(tmp_path))
        wait_until((tmp_path / "first.done").exists, "the first task", seconds=180)
        set_state("offline")
        (tmp_path / "go").touch()

        assert call.result(timeout=200) == ["ibm_away", "ibm_next"]

    after = completed(site)
    assert {name: after[name] - before[name] for name in after} == {"ibm_away": 1, "ibm_next": 1}
