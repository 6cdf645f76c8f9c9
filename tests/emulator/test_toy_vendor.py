"""Another package adds a vendor: tests/plugins/toy_vendor is all of it, and it works everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import ask, read_resources
from pages import blocks
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

PLUGIN = Path(__file__).parents[1] / "plugins" / "toy_vendor"
PAGE = Path(__file__).parents[2] / "docs" / "add-a-vendor.md"
CONFIG = """
[qpus.toy_1]
type = "toy-qpu"

[qpus.toy_null]
type = "toy-qpu"
simulator = "null"
"""
BITS = {"toy_bits": "101", "toy_shots": 100}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Emulate two QPUs of the toy; the plug-in is installed for child processes alone."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "emulator.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGIN), prepend=os.pathsep)
        with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
            yield running


@pytest.fixture
def user(toys: Emulator, tmp_path: Path) -> dict[str, str]:
    """The environment of a user at a site with the toy's QPUs and the toy's package."""
    (tmp_path / "toy.json").write_text(json.dumps(BITS))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    return kept | {
        "PYTHONPATH": str(PLUGIN),
        "QPU_CONFIG": str(toys.config_path),
        "QPU_STATE": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }


@pytest.fixture
def paused(toys: Emulator) -> Iterator[None]:
    """Accept tasks of `toy_1` without running them."""
    toys.control.ask("PATCH", "/qpus/toy_1", {"availability": "paused"})
    yield
    toys.control.ask("PATCH", "/qpus/toy_1", {"availability": "online"})


def qpu(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `qpu` in the user's home folder."""
    argv = [sys.executable, "-m", "qrmi_workflows", *arguments]
    return subprocess.run(
        argv, env=environ, cwd=environ["HOME"], capture_output=True, text=True, timeout=60
    )


def evaluate(environ: dict[str, str], program: str, *, qpu: str = "toy_1") -> Any:
    """Run a program under a lease, and return the JSON that it prints last."""
    head = f"import json\nfrom qrmi_workflows import open_lease\nlease = open_lease({qpu!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program],
        env=environ,
        cwd=environ["HOME"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_for_submission(environ: dict[str, str]) -> None:
    """Wait until a run knows that the vendor has accepted its task."""
    journal = Path(environ["QPU_STATE"], "journal", "open")
    wait_until(
        lambda: any("submitted" in record.read_text() for record in journal.glob("*/*/*.json")),
        "the record of the submitted task",
    )


def test_the_package_is_one_file_and_one_line_for_each_seam() -> None:
    """One module and one entry point for the vendor, and the same for its emulator."""
    files = {path.name for path in PLUGIN.iterdir() if path.suffix == ".py"}
    entry_points = PLUGIN / "toy_vendor-1.0.dist-info" / "entry_points.txt"

    assert files == {"toy_vendor.py", "toy_emulator.py"}
    assert [line for line in entry_points.read_text().splitlines() if line] == [
        "[qrmi_workflows.vendors]",
        "toy-qpu = toy_vendor:TOY",
        "[qrmi_workflows.dialects]",
        "toy-qpu = toy_emulator:ToyCloud",
    ]


def test_its_qpus_are_listed(user: dict[str, str]) -> None:
    """They are online."""
    rows = json.loads(qpu(user, "list", "--json").stdout)

    assert [(row["name"], row["type"], row["state"]) for row in rows] == [
        ("toy_1", "toy-qpu", "online"),
        ("toy_null", "toy-qpu", "online"),
    ]


@pytest.mark.parametrize("name", ["toy_1", "toy_null"])
def test_a_payload_runs_on_its_simulator_and_on_null(user: dict[str, str], name: str) -> None:
    """The result has the right counts and the QPU's provenance."""
    done = qpu(user, "run", "toy.json", "-o", "r.json", "--qpu", name)

    assert done.returncode == 0, done.stderr
    result = json.loads(Path(user["HOME"], "r.json").read_text())
    assert (result["qpu"], result["type"], result["program"]) == (name, "toy-qpu", "toy")
    assert result["data"][0]["registers"]["toy"]["counts"] == {"101": 100}


def test_a_program_in_its_own_notation_runs(user: dict[str, str]) -> None:
    """`--shots` applies to it; what an estimator needs does not."""
    Path(user["HOME"], "bits.toy").write_text("TOY 11\n")

    done = qpu(user, "run", "bits.toy", "-o", "r.json", "--qpu", "toy_1", "--shots", "7")
    refused = qpu(user, "run", "bits.toy", "-o", "s.json", "--qpu", "toy_1", "--precision", "0.1")

    assert done.returncode == 0, done.stderr
    assert json.loads(Path(user["HOME"], "r.json").read_text())["vendor_result"] == "11,7\n"
    assert refused.returncode == 2
    assert "precision=0.1" in refused.stderr
    assert "a program of the toy" in refused.stderr


def test_a_killed_run_is_re_attached_and_paid_for_once(
    user: dict[str, str], toys: Emulator, paused: None
) -> None:
    """The rerun waits for the task that the first run submitted."""
    argv = ["run", "toy.json", "-o", "r.json", "--qpu", "toy_1"]
    before = toys.counters()["tasks"]["accepted"]
    first = subprocess.Popen(
        [sys.executable, "-m", "qrmi_workflows", *argv], env=user, cwd=user["HOME"]
    )
    wait_for_submission(user)
    first.kill()
    first.wait()
    toys.control.ask("PATCH", "/qpus/toy_1", {"availability": "online"})

    rerun = qpu(user, *argv)

    assert rerun.returncode == 0, rerun.stderr
    assert json.loads(Path(user["HOME"], "r.json").read_text())["vendor_result"] == "101,100\n"
    assert toys.counters()["tasks"]["accepted"] == before + 1


def test_the_lease_offers_its_front_ends(user: dict[str, str]) -> None:
    """One takes the name of a method of `Lease`; the other has a name of its own."""
    program = """
print(json.dumps([
    lease.sampler({"shots": 5}).run("01"),
    lease.frontend("toy_batch", ["0", "11"], shots=3),
]))
"""
    assert evaluate(user, program) == [{"01": 5}, [{"0": 3}, {"11": 3}]]


def test_a_result_has_counts_arrays_and_its_conversion(user: dict[str, str]) -> None:
    """All of them work on a result that was loaded from its file."""
    program = f"""
from qrmi_workflows import QuantumResult
lease.run({BITS}).save("r.json")
result = QuantumResult.load("r.json")
bits = result.to_numpy()["toy"]
print(json.dumps([result.counts(), result.convert("to_toy_tally"), bits.shape, bits[0].tolist()]))
"""
    assert evaluate(user, program) == [{"101": 100}, ["101", 100], [100, 3], [1, 0, 1]]


def test_what_the_qpu_lacks_is_refused_with_what_it_has(user: dict[str, str]) -> None:
    """The same for a front end and for a conversion."""
    program = f"""
from qrmi_workflows.errors import PayloadError, ResultError
messages = []
try:
    lease.estimator()
except PayloadError as error:
    messages.append(str(error))
try:
    lease.run({BITS}).to_primitive_result()
except ResultError as error:
    messages.append(str(error))
print(json.dumps(messages))
"""
    frontend, conversion = evaluate(user, program)

    assert "QPU 'toy_1' of type 'toy-qpu' has no estimator" in frontend
    assert "sampler, toy_batch" in frontend
    assert "ran the program 'toy'" in conversion
    assert "to_toy_tally" in conversion


def test_a_payload_of_no_vendor_is_refused_with_the_toy_among_those_known(
    user: dict[str, str],
) -> None:
    """The message lists its keys and its notation."""
    Path(user["HOME"], "wrong.json").write_text('{"bits": "101"}')

    done = qpu(user, "run", "wrong.json", "-o", "r.json", "--qpu", "toy_1")

    assert done.returncode == 2
    assert "for toy, a JSON object with the keys toy_bits and toy_shots" in done.stderr
    assert "the toy's notation (.toy)" in done.stderr


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"toy_bits": "12", "toy_shots": 1}, "['toy_bits']: '12' does not match"),
        ({"toy_bits": "1" * 9, "toy_shots": 1}, "QPU 'toy_1' allows at most 8"),
        ({"sequence": {"register": []}, "job_runs": 1}, "cannot run on QPU 'toy_1' of type"),
    ],
)
def test_a_bad_payload_is_refused_before_the_vendor_sees_it(
    user: dict[str, str], toys: Emulator, payload: dict[str, Any], message: str
) -> None:
    """By its schema, by the QPU's target, or because it is another vendor's."""
    Path(user["HOME"], "bad.json").write_text(json.dumps(payload))
    before = toys.counters()["tasks"]["accepted"]

    done = qpu(user, "run", "bad.json", "-o", "r.json", "--qpu", "toy_1")

    assert done.returncode == 2
    assert message in done.stderr
    assert toys.counters()["tasks"]["accepted"] == before


def test_a_stopped_run_cancels_its_task(user: dict[str, str], toys: Emulator, paused: None) -> None:
    """SIGTERM to `qpu run` reaches the vendor as a cancellation."""
    before = toys.counters()["tasks"]["cancelled"]
    argv = [sys.executable, "-m", "qrmi_workflows", "run", "toy.json", "-o", "r.json"]
    run = subprocess.Popen([*argv, "--qpu", "toy_1"], env=user, cwd=user["HOME"])
    wait_for_submission(user)

    run.terminate()

    assert run.wait(30) == 128 + signal.SIGTERM
    assert toys.counters()["tasks"]["cancelled"] == before + 1


def test_only_its_account_may_use_it(toys: Emulator) -> None:
    """The emulator checks the credentials that it wrote to `qrmi_config.json`."""
    key = read_resources(toys)["toy_1"]["environment"]["QRMI_AB_FELIS_API_KEY"]
    path = "/toy-qpu/v1/targets/"

    assert ask(toys, "GET", path)[0] == 401
    assert ask(toys, "GET", path, headers={"Authorization": f"Basic {key}"})[0] == 200


def test_the_commands_of_the_page_run(user: dict[str, str], toys: Emulator) -> None:
    """They expect the emulator's folder in the working directory."""
    Path(user["HOME"], "qpu-emulator").symlink_to(toys.folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    (commands,) = blocks(PAGE, "sh")

    done = subprocess.run(
        ["bash", "-ec", commands],
        env=user | {"PATH": path},
        cwd=user["HOME"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "toy_1" in done.stdout
    assert Path(user["HOME"], "toy.result.json").exists()
