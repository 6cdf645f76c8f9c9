"""Kill, starve and confuse a step at random moments; rerun it; count what was lost.

Every run has a seed, which is printed when something is wrong; `BREAK_SEED` and `BREAK_RUNS` choose
others: `make break-it` takes 300. After each run the step is run again until it has its result.
Lost results, tasks paid for twice, leases left open and processes left behind must all be none; a
task that is ambiguous (the vendor's answer was lost) may be paid for twice, and is reported. A
session whose grant was lost in the same way has an id that nobody knows: its time to live ends it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from fault_payloads import bell

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator, start_emulator

RUNS = int(os.environ.get("BREAK_RUNS", "20"))
SEED = int(os.environ.get("BREAK_SEED", str(random.SystemRandom().randrange(10**6))))
TASK_SECONDS = 0.25
SESSION_SECONDS = 30
MARK = "QPU_BREAK_IT"
ROUTES = ("POST */jobs", "GET */jobs/*", "POST */sessions", "PATCH */sessions/*", "*")

# The `qpu` command, with shorter deadlines, so that a vendor who hangs costs seconds.
PROGRAM = """
from qrmi_workflows import resource
resource.DEADLINES, resource._DEFAULT_DEADLINE = {}, 3.0
from qrmi_workflows.cli import main
main()
"""
QPU = (sys.executable, "-c", PROGRAM)

CONFIG = f"""
[qpus.ibm_fragile]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {TASK_SECONDS}
lanes = 5
"""


@dataclass
class Site:
    """One emulator that may be killed, and one user's folder for each run."""

    emulator: Emulator
    folder: Path
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def config(self) -> Path:
        """The vendor's qrmi_config.json, with a shorter time to live for sessions."""
        document = json.loads(self.emulator.config_path.read_text())
        for resource in document["resources"]:
            resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = str(SESSION_SECONDS)
        path = self.folder / "qrmi_config.json"
        path.write_text(json.dumps(document))
        return path

    def restart(self) -> None:
        self.emulator.process.kill()
        self.emulator.process.wait()
        self.emulator = start_emulator(self.emulator.folder, config=self.folder / "emulator.toml")

    def count(self) -> dict[str, int]:
        counters = self.emulator.counters()
        return {**counters["tasks"], **counters["sessions"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("break")
    (folder / "emulator.toml").write_text(CONFIG)
    running = start_emulator(folder / "emulator", config=folder / "emulator.toml")
    made = Site(running, folder)
    yield made
    made.emulator.stop()
    print(f"\nbreak it: seed {SEED}, {dict(sorted(made.tally.items()))}")


@dataclass
class Step:
    """One step of a user: `qpu run`, in a lease of its own or under `qpu lease exec`."""

    folder: Path
    environ: dict[str, str]
    supervised: bool
    lost_grants: int = 0

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def start(self, *options: str) -> subprocess.Popen[str]:
        argv = [*QPU, "run", str(self.folder / "payload.json"), "-o", str(self.result)]
        if self.supervised:
            argv = [*QPU, "lease", "exec", "--qpu", "ibm_fragile", "--grace", "1", "--", *argv]
        return subprocess.Popen(
            [*argv, *options], env=self.environ, stderr=subprocess.PIPE, text=True
        )

    def hear(self, process: subprocess.Popen[str]) -> str:
        """Wait for the end, and note a session that may be open although its grant was lost."""
        said = process.communicate(timeout=60)[1]
        self.lost_grants += "could not be acquired" in said
        return said


def kill(step: Step, site: Site, dice: random.Random) -> None:
    before = site.count()["open"]
    end_by(step, dice, signal.SIGKILL)
    if site.count()["open"] > before and not list(step.folder.glob("state/leases/open/*.json")):
        step.lost_grants += 1  # it died between asking for a session and hearing its id


def terminate(step: Step, site: Site, dice: random.Random) -> None:
    end_by(step, dice, signal.SIGTERM)


def interrupt(step: Step, site: Site, dice: random.Random) -> None:
    end_by(step, dice, signal.SIGINT)


def end_by(step: Step, dice: random.Random, number: int) -> None:
    process = step.start(*dice.choice([(), ("--on-stop", "leave")]))
    time.sleep(dice.uniform(0.05, 0.3 + TASK_SECONDS + 0.3 * step.supervised))
    process.send_signal(number)
    step.hear(process)


def restart_vendor(step: Step, site: Site, dice: random.Random) -> None:
    process = step.start()
    time.sleep(dice.uniform(0.1, 0.3 + TASK_SECONDS))
    site.restart()
    step.hear(process)


def fail(step: Step, site: Site, dice: random.Random) -> None:
    status = dice.choice([429, 500, 502, 503])
    when = "before" if status == 429 else dice.choice(["before", "after"])
    inject(step, site, dice, kind="status", status=status, when=when)


def cut_off(step: Step, site: Site, dice: random.Random) -> None:
    inject(step, site, dice, kind=dice.choice(["drop", "malformed"]))


def hang(step: Step, site: Site, dice: random.Random) -> None:
    inject(step, site, dice, kind="hang", when="before")


def inject(step: Step, site: Site, dice: random.Random, **rule: object) -> None:
    rule |= {"route": dice.choice(ROUTES), "count": dice.randint(1, 3)}
    rule = {"after": dice.randint(0, 3), "when": dice.choice(["before", "after"])} | rule
    site.emulator.control.ask("POST", "/faults", rule)
    step.hear(step.start())
    site.emulator.control.ask("DELETE", "/faults")


def read_only_journal(step: Step, site: Site, dice: random.Random) -> None:
    state = Path(step.environ["QPU_STATE"])
    state.write_text("not a folder")  # root ignores permissions; nobody writes below a file
    process = step.start()
    said = step.hear(process)
    assert process.returncode == 1
    assert "journal" in said
    state.unlink()


WAYS: tuple[Callable[[Step, Site, random.Random], None], ...] = (
    kill, kill, kill, terminate, terminate, interrupt, restart_vendor, fail, fail, cut_off, cut_off,
    hang, hang, read_only_journal,
)  # fmt: skip


def run_until_done(step: Step, site: Site) -> int:
    """Run the step again until it has its result; return how often a task was ambiguous."""
    for ambiguous in range(6):
        options = ("--on-ambiguous", "resubmit") if ambiguous else ()
        process = step.start(*options)
        said = step.hear(process)
        if process.returncode == 0:
            return ambiguous
        assert "nobody knows whether" in said, said
    raise AssertionError("no result after six runs")


def processes_left(mark: str) -> list[psutil.Process]:
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                left.append(process)
        except psutil.Error:
            continue
    return left


def test_sessions_whose_grant_was_lost_end_by_themselves(site: Site):
    limit = time.monotonic() + SESSION_SECONDS + 10
    while site.count()["open"] and time.monotonic() < limit:
        time.sleep(0.2)

    assert site.count()["open"] == 0


def reap(environ: dict[str, str]) -> None:
    argv = [sys.executable, "-m", "qrmi_workflows", "reap"]
    subprocess.run(argv, env=environ, timeout=30, check=False, capture_output=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_is_lost_and_nothing_is_left(site: Site, tmp_path: Path, number: int):
    seed = SEED + number
    dice = random.Random(seed)
    (tmp_path / "payload.json").write_text(json.dumps(bell(shots=1 + seed % 4000)))
    environ = {**os.environ, MARK: f"{os.getpid()} {seed}", "QPU_STATE": str(tmp_path / "state")}
    environ["QPU_CONFIG"] = str(site.config)
    environ.pop("QPU_SITE", None)
    step = Step(tmp_path, environ, supervised=dice.random() < 0.3)
    way, before = dice.choice(WAYS), site.count()

    way(step, site, dice)
    had_result = step.result.exists()
    ambiguous = 0 if had_result else run_until_done(step, site)
    wait_for_children(environ[MARK])
    reap(environ)

    after = {key: value - before.get(key, 0) for key, value in site.count().items()}
    story = f"seed {seed}: {way.__name__}, supervised {step.supervised}, {after}"
    site.tally.update({"runs": 1, way.__name__: 1, "ambiguous": ambiguous})
    assert QuantumResult.load(step.result).counts(), story
    assert after["completed"] + after["running"] <= 1 + ambiguous, f"paid twice: {story}"
    site.tally["grants lost"] += step.lost_grants
    assert after["open"] <= step.lost_grants, f"a lease is open: {story}"
    assert processes_left(environ[MARK]) == [], story


def wait_for_children(mark: str) -> None:
    """Wait until a command whose supervisor was killed has ended by itself."""
    limit = time.monotonic() + 10
    while processes_left(mark) and time.monotonic() < limit:
        time.sleep(0.05)
