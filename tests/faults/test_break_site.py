"""Kill a site's daemons, scripts and jobs at random moments, and count what was lost.

Root runs the cluster: its Prolog and Epilog hold the QPUs of a user's jobs, whose tasks draw from a
budget. After each round the site is reaped, and the steps are rerun until they have their results.

Two things cannot be avoided, and are counted instead. If the very process that has requested a
session is killed, nobody knows the session's id: it ends at its time to live. If the vendor's
answer to a submission was lost, the task is ambiguous, and counts twice in the budgets.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from break_it import RUNS, SEED
from fault_payloads import bell
from other_users import User, python_for_all, temporary_user
from site_scripts import ScriptedSite
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.slow]

AT_ONCE = 2
"""The number of jobs of a round; what is killed may be of all of them, or of one."""
ROUNDS = max(9, RUNS // 3)
IS_FULL = ROUNDS > 10
"""Whether slurmdbd is killed, too, and a vendor may be silent for longer than the Prolog waits."""
QPUS = tuple(f"ibm_{n}" for n in range(AT_ONCE))
EMULATOR = "".join(
    f"""
[qpus.{name}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.3
"""
    for name in QPUS
)
LOSSES = ("leases left open", "nodes drained", "shots off in the budgets", "results lost")
SILENT = 34  # seconds: longer than the Prolog waits for a vendor
VICTIMS = (
    *("slurmd", "slurmstepd", "supervisor", "prolog", "acquirer", "epilog"),
    *("silent vendor", "batch script", "nothing"),
    *(("slurmdbd",) if IS_FULL else ()),
)


@dataclass
class Step:
    """A task that a job runs, and that later jobs rerun until it has its result."""

    folder: Path
    qpu: str
    shots: int
    supervised: bool
    jobs: list[int] = field(default_factory=list)

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


class BrokenSite(ScriptedSite):
    """The cluster, the user of its jobs, and what has happened to them.

    Args:
        box: The sandbox.
        work: A folder that every user may use.
        user: The user.
        python: A Python that the user may run.
    """

    def __init__(self, box: Sandbox, work: Path, user: User, python: tuple[str, ...]) -> None:
        super().__init__(box, work, python)
        self.user = user
        self.budgets = work / "budgets"
        self.ways: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()
        self.losses = Counter(dict.fromkeys(LOSSES, 0))
        self.lost_sessions: set[str] = set()
        self.ambiguous_shots = 0
        self.off = 0

    def __str__(self) -> str:
        """Render as `make break-it` prints it."""
        lines = {
            f"{self.ways.total()} rounds of {AT_ONCE} jobs, seed {SEED}": self.ways,
            "reported": self.reported,
            "lost": self.losses,
        }
        return "\n".join(f"{what}: {dict(sorted(count.items()))}" for what, count in lines.items())

    def qpu(self, *arguments: str) -> str:
        """Run `qpu` as the user, outside of a job."""
        policy = str(self.box.directory / "site.toml")
        argv = (*self.python.split(), "-m", "qrmi_workflows", *arguments)
        done = self.user.run(*argv, QPU_SITE=policy, PATH=self.environ["PATH"])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def step(self, number: int, dice: random.Random) -> Step:
        """Create a step whose number of shots identifies its tasks."""
        folder = self.user.home / str(number)
        folder.mkdir()
        folder.chmod(0o777)
        step = Step(folder, QPUS[number % AT_ONCE], 1000 + number, dice.random() < 0.5)
        (folder / "payload.json").write_text(json.dumps(bell(step.shots)))
        return step

    def start(self, step: Step, *options: str) -> None:
        """Submit a job of the step."""
        qpu = f"{self.python} -m qrmi_workflows"
        lease = f"{qpu} lease exec --qpu {step.qpu} --grace 1 --" if step.supervised else ""
        arguments = f"{step.folder}/payload.json -o {step.result} {' '.join(options)}"
        asked = (f"--gres=qpu:{step.qpu}:1", f"--licenses=qpu_{step.qpu}:1", "--time=5")
        script = f"cd {step.folder}\n{lease} {qpu} run {arguments}"
        step.jobs.append(self.submit(script, "--no-requeue", *asked, user=self.user))

    def are_over(self) -> bool:
        """Return whether all jobs have ended, with their Epilogs."""
        done = self.run("squeue", "--noheader")
        return done.returncode == 0 and done.stdout == ""

    def open_sessions(self) -> set[str]:
        """Return the sessions that are open at the vendor, but for those that were lost."""
        return {
            each for (each,) in self.ask("SELECT id FROM sessions WHERE state != 'closed'")
        } - self.lost_sessions

    def shots(self) -> int:
        """Return the shots of all tasks that the vendor has completed."""
        query = "SELECT request FROM tasks WHERE state = 'completed'"
        return sum(json.loads(request)["pubs"][0][2] for (request,) in self.ask(query))

    def ask(self, query: str) -> list[tuple[str, ...]]:
        """Query the emulator's own database."""
        database = self.box.directory / "emulator" / "emulator.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            return store.execute(query).fetchall()

    def spent(self) -> int:
        """Return the shots in the user's book; nothing may be reserved any more."""
        self.qpu("reap")
        self.qpu("budget", "show")
        book = json.loads((self.budgets / "ledger" / self.user.name / "-.json").read_text())
        assert book["open"] == {}
        return sum(qpu["shots"] for day in book["days"].values() for qpu in day.values())

    def left(self) -> set[str]:
        """Return the sessions that are open, and the files of open leases."""
        return {*self.open_sessions(), *map(str, self.state.glob("leases/open/*.json"))}

    def newly_off(self) -> int:
        """Return by how many shots the budgets have come to differ from what the vendor has run."""
        more = self.spent() - self.shots()
        before, self.off = self.off, max(-more, more - self.ambiguous_shots, 0)
        return abs(self.off - before)

    def wait_for_nodes(self) -> list[str]:
        """Wait for nodes that come back; return those that do not, and why, and resume them."""
        with suppress(AssertionError):
            wait_until(lambda: not self.drained_nodes(), "the nodes", 60)
        if not self.drained_nodes():
            return []
        reasons = self.slurm("sinfo", "--noheader", "--list-reasons").splitlines()
        self.run("scontrol", "update", "NodeName=ALL", "State=RESUME")
        return reasons or self.drained_nodes()

    def processes(self, job: int, *words: str) -> list[psutil.Process]:
        """Find the processes of a job, its Prolog and its Epilog, by words of their arguments."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environ, argv = process.environ(), process.cmdline()
                is_here = str(self.box.directory) in f"{environ.get('SLURM_CONF')} {argv}"
                if is_here and environ.get("SLURM_JOB_ID") == str(job):
                    found += [process] if all(word in " ".join(argv) for word in words) else []
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[BrokenSite]:
    with tempfile.TemporaryDirectory(prefix="break-site-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with temporary_user(f"ada{os.getpid()}", folder) as user:
            (folder / "emulator.toml").write_text(EMULATOR)
            work = folder / "work"
            work.mkdir()
            work.chmod(0o1777)
            box = Sandbox(folder / "box")
            with pytest.MonkeyPatch.context() as patch:
                # Each start of a daemon writes the policy anew.
                policy = render.render_site_policy
                patch.setattr(
                    render,
                    "render_site_policy",
                    lambda *qpus, **paths: with_budgets(policy(*qpus, **paths), work / "budgets"),
                )
                settings = folder / "emulator.toml"
                box.up(config=settings, site_scripts=True, accounting=IS_FULL)
                try:
                    site = BrokenSite(box, work, user, python_for_all(user, folder))
                    unlimited = ("user:*", "1000000000 shots", "--per", "total")
                    site.slurm("qpu", "budget", "set", *unlimited)
                    yield site
                    print(f"\n{site}")
                finally:
                    box.down(grace=0)


def with_budgets(policy: str, folder: Path) -> str:
    """Return a site policy whose budgets are in a folder."""
    return policy.replace("[site]\n", f'[site]\nbudgets = "{folder}"\n')


def kill(processes: list[psutil.Process]) -> bool:
    """Kill processes; return whether there was one."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(processes)


def kill_when_seen(site: BrokenSite, step: Step, dice: random.Random, *words: str) -> bool:
    """Kill processes of the step's job a random time after they have appeared."""
    job = step.jobs[-1]
    with suppress(AssertionError):  # it may have been brief
        wait_until(lambda: site.processes(job, *words) or site.are_over(), "the process", 20)
    time.sleep(dice.uniform(0, 0.8))
    return kill(site.processes(job, *words))


def kill_daemon(site: BrokenSite, name: str, dice: random.Random) -> bool:
    """Kill daemons, and start them again after a while."""
    time.sleep(dice.uniform(0, 4))
    nodes = dice.choice([("slurmd-n1",), ("slurmd-n1", "slurmd-n2")])
    names = nodes if name == "slurmd" else (name,)
    daemons = {each.name: each.pid for each in site.box.status().daemons}
    for each in names:
        os.kill(daemons[each], signal.SIGKILL)
    wait_until(lambda: set(names) <= set(site.box.status().dead), "the daemons to end")
    time.sleep(dice.uniform(0, 1))
    site.box.up()
    return True


def kill_acquirer(site: BrokenSite, step: Step, dice: random.Random) -> bool:
    """Kill the Prolog, and the process with which it acquires; its session may be lost."""
    before = site.open_sessions()
    killed = kill_when_seen(site, step, dice, "site.prolog", "-I")
    wait_until(lambda: not site.processes(step.jobs[-1], "site.prolog"), "the end of the Prolog")
    known = {
        json.loads(path.read_text())["token"] for path in site.state.glob("leases/open/*.json")
    }
    if killed:
        time.sleep(1)  # the vendor may be about to grant what was requested
        lost = site.open_sessions() - before - known
        site.lost_sessions |= lost
        site.reported["sessions of killed processes"] += len(lost)
    return killed


def silence(site: BrokenSite, step: Step, dice: random.Random) -> bool:
    """Have the vendor answer late, or after the Prolog has given up."""
    seconds = dice.choice([2, 5, SILENT]) if IS_FULL else 2
    when = dice.choice(["before", "after"])
    fault = {"kind": "delay", "seconds": seconds, "route": "POST */sessions", "when": when}
    site.control.ask("POST", "/faults", fault)
    site.start(step)
    try:
        wait_until(lambda: site.sessions()["open"] or site.are_over(), "the session", 90)
        if dice.random() < 0.5:
            kill(site.processes(step.jobs[-1], "site.prolog", "timeout"))
    finally:
        site.control.ask("DELETE", "/faults")
    return True


def break_one(site: BrokenSite, victim: str, step: Step, dice: random.Random) -> bool:
    """Kill something while the step's job starts, runs or ends; return whether it was there."""
    if victim in ("slurmd", "slurmdbd"):
        return kill_daemon(site, victim, dice)
    if victim == "slurmstepd":
        return kill_step_daemon(site, step, dice)
    if victim == "acquirer":
        return kill_acquirer(site, step, dice)
    if victim == "silent vendor":
        return silence(site, step, dice)
    if victim == "prolog":  # but not the process with which it acquires
        job, words = step.jobs[-1], ("site.prolog", "-I")
        with suppress(AssertionError):
            wait_until(lambda: site.processes(job, *words) or site.are_over(), "the Prolog", 20)
        time.sleep(dice.uniform(0, 0.8))
        return kill(
            [each for each in site.processes(job, *words) if os.getsid(each.pid) != each.pid]
        )
    words = {
        "supervisor": ("lease", "exec"),
        "epilog": ("site.epilog",),
        "batch script": ("script",),
    }
    return victim == "nothing" or kill_when_seen(site, step, dice, *words[victim])


def kill_step_daemon(site: BrokenSite, step: Step, dice: random.Random) -> bool:
    job = step.jobs[-1]
    with suppress(AssertionError):
        wait_until(lambda: site.processes(job, "slurm_script") or site.are_over(), "the job", 20)
    time.sleep(dice.uniform(0, 2))
    parents = [each.parent() for each in site.processes(job, "slurm_script")]
    return kill([each for each in parents if each is not None and each.name() == "slurmstepd"])


def finish(site: BrokenSite, step: Step) -> bool:
    """Rerun a step until it has its result; return whether it has."""
    for run in range(6):
        if step.result.exists():
            return True
        site.start(step, *(("--on-ambiguous", "resubmit") if run else ()))
        wait_until(site.are_over, "the job to end", 120)
        if "it is not known whether" in site.output(step.jobs[-1]):
            site.reported["ambiguous"] += 1
            site.ambiguous_shots += step.shots
    return step.result.exists()


def end_jobs(site: BrokenSite, dice: random.Random) -> None:
    """Let the jobs end, or cancel them after a while; a step without slurmstepd never ends."""
    with suppress(AssertionError):
        wait_until(site.are_over, "the jobs to end", dice.choice([0.5, 2, 10]))
    site.run("scancel", "--quiet", f"--user={site.user.name}")
    wait_until(site.are_over, "the jobs to end", 150)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_nothing_is_lost_at_random_moments(site: BrokenSite, number: int) -> None:
    dice = random.Random(SEED + number)
    victim = VICTIMS[number] if number < len(VICTIMS) else dice.choice(VICTIMS)
    steps = [site.step(number * AT_ONCE + each, dice) for each in range(AT_ONCE)]
    victims = steps[0]
    victims.supervised = victim == "supervisor" or victims.supervised
    for step in steps[victim == "silent vendor" :]:
        site.start(step)
    was_there = break_one(site, victim, victims, dice)
    site.ways[victim if was_there else f"{victim}, too late"] += 1
    end_jobs(site, dice)

    with suppress(AssertionError):
        wait_until(lambda: site.reap("--all").returncode == 0 and not site.left(), "the end")
    left = site.left()
    drained = site.wait_for_nodes()
    lost = [step.shots for step in steps if not finish(site, step)]
    losses = {
        "leases left open": len(left),
        "nodes drained": len(drained),
        "results lost": len(lost),
        "shots off in the budgets": site.newly_off(),
    }
    site.losses.update(losses)
    assert not any(losses.values()), f"round {number}, {victim}: {losses}, {left}, {drained}"
