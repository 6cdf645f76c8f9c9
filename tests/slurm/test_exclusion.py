"""A QPU is held by one job at a time across the cluster, or by as many as it has lanes.

What the vendor saw decides: the times of sessions and tasks in the emulator's own database.
`EXCLUSION_JOBS` is the number of jobs that compete for the exclusive QPUs (`make break-it`: 200).
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from other_users import User, python_for_all, temporary_user
from site_scripts import ScriptedSite
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.slow]

JOBS = int(os.environ.get("EXCLUSION_JOBS", "24"))
EXCLUSIVE = ("ibm_a", "ibm_b", "ibm_c", "garnet_mock")
LANES = {"ibm_shared": 3, "crystal_mock": 2}
OF_A_NODE = "ibm_node"
"""A QPU with a GRES on each node, but without a licence."""

EMULATOR = "".join(
    f"""
[qpus.{name}]
type = "{"iqm-server" if name.endswith("mock") else "ibm-quantum-compute-service"}"
simulator = "null"
execution_seconds = 0.3
lanes = {LANES.get(name, 1)}
"""
    for name in (*EXCLUSIVE, *LANES, OF_A_NODE)
)
GRANTED = 'gres = "qpu:{qpu}"\nlicence = "qpu_{qpu}"\n'
POLICY = "".join(
    [
        *(f'[qpus."{name}"]\n{GRANTED}exclusive = true\n' for name in EXCLUSIVE),
        *(
            f'[qpus."{name}"]\n{GRANTED}lanes = {n}\nexclusive = false\n'
            for name, n in LANES.items()
        ),
        f'[qpus."{OF_A_NODE}"]\ngres = "qpu:{{qpu}}"\n',
    ]
)
MEASUREMENT = {
    "name": "measure",
    "locus": ["QB1"],
    "args": {"key": "m"},
    "implementation": None,
}
CIRCUIT = {"name": "c", "instructions": [MEASUREMENT], "metadata": None}
PAYLOAD = {
    "iqmjson": {"circuits": [CIRCUIT], "shots": 10},
    "job_type": "circuit",
    "use_timeslot": False,
}


def has_sessions(qpu: str) -> bool:
    """Return whether the vendor has sessions; IQM has none."""
    return not qpu.endswith("mock")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="exclusion-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def users(folder: Path) -> Iterator[tuple[User, User]]:
    with (
        temporary_user(f"ada{os.getpid()}", folder) as ada,
        temporary_user(f"eve{os.getpid()}", folder) as eve,
    ):
        yield ada, eve


@pytest.fixture(scope="module")
def site(folder: Path, users: tuple[User, User]) -> Iterator[ScriptedSite]:
    """A cluster of three nodes, each with the GRES of all QPUs; the shared ones count lanes."""
    slurm_conf, gres_conf = render.render_slurm_conf, render.render_gres_conf

    def count_lanes(text: str) -> str:
        for name, lanes in LANES.items():
            text = re.sub(rf"(qpu[:_]{name}:)1\b", rf"\g<1>{lanes}", text)
            text = re.sub(rf"(Type={name} Count=)1\b", rf"\g<1>{lanes}", text)
        return text

    def render_policy(qpus: dict[str, int], *, state: Path | None = None) -> str:
        return f'[site]\nstate = "{state}"\n' + POLICY

    work = folder / "work"
    work.mkdir()
    work.chmod(0o1777)
    (work / "payload.json").write_text(json.dumps(PAYLOAD))
    (folder / "emulator.toml").write_text(EMULATOR)
    box = Sandbox(folder / "box")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "render_slurm_conf", lambda cluster: count_lanes(slurm_conf(cluster)))
        patch.setattr(render, "render_gres_conf", lambda qpus: count_lanes(gres_conf(qpus)))
        patch.setattr(render, "render_site_policy", render_policy)
        box.up(nodes=3, config=folder / "emulator.toml", site_scripts=True)
        try:
            yield ScriptedSite(box, work, python_for_all(users[0], folder))
        finally:
            box.down(grace=0)


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which the vendor had a session open, or a task that had not ended."""

    began: float
    ended: float | None


def at_vendor(site: ScriptedSite, qpu: str) -> list[Span]:
    """Return what the emulator has recorded: sessions, or tasks if the vendor has no sessions."""
    query = (
        "SELECT created, closed FROM sessions WHERE qpu = ? ORDER BY created"
        if has_sessions(qpu)
        else "SELECT accepted, finished FROM tasks WHERE qpu = ? ORDER BY accepted"
    )
    database = site.box.directory / "emulator" / "emulator.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        return [Span(*row) for row in store.execute(query, (qpu,))]


def most_at_once(spans: list[Span]) -> int:
    """Return how many there were at once, at most; one that ends as another begins is over."""
    changes = [(span.began, 1) for span in spans]
    changes += [(span.ended, -1) for span in spans if span.ended is not None]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def submit(site: ScriptedSite, qpu: str, user: User, *, script: str, licence: bool = True) -> int:
    options = [f"--gres=qpu:{qpu}:1", *([f"--licenses=qpu_{qpu}:1"] if licence else [])]
    return site.submit(script, "--no-requeue", *options, user=user)


def run_all(site: ScriptedSite, jobs: list[int], seconds: float) -> Counter[str]:
    """Wait until all jobs have ended, and their Epilogs; return how many ended in which state."""
    wait_until(lambda: site.slurm("squeue", "--noheader") == "", "all jobs to end", seconds)
    wait_until(lambda: site.sessions()["open"] == 0, "all sessions to be closed")
    # Slurm forgets ended jobs after MinJobAge, so the jobs write down that they have run.
    return Counter(site.output(job).strip().rpartition("\n")[2] for job in jobs)


def step(site: ScriptedSite, qpu: str, user: User) -> str:
    """A job's script: it holds the QPU, and runs a task where only a task shows that."""
    if has_sessions(qpu):
        return f"while [ -e {site.work}/hold ]; do sleep 0.1; done; sleep 0.2; echo done"
    run = f"{site.python} -m qrmi_workflows run {site.work}/payload.json -o $SLURM_JOB_ID.json"
    return f"cd {user.home} && {run} >/dev/null && echo done"


def submit_all(
    site: ScriptedSite, users: tuple[User, User], qpus: tuple[str, ...], number: int
) -> list[int]:
    """Submit jobs of two users that compete for QPUs."""
    pairs = [(qpus[n % len(qpus)], users[n // len(qpus) % 2]) for n in range(number)]
    return [submit(site, qpu, user, script=step(site, qpu, user)) for qpu, user in pairs]


@pytest.mark.timeout(0)
def test_no_two_jobs_hold_an_exclusive_qpu_at_once(
    site: ScriptedSite, users: tuple[User, User]
) -> None:
    jobs = submit_all(site, users, EXCLUSIVE, JOBS)

    assert run_all(site, jobs, seconds=60 + 20 * JOBS) == {"done": JOBS}
    for qpu in EXCLUSIVE:
        spans = at_vendor(site, qpu)
        assert len(spans) == JOBS // len(EXCLUSIVE)
        assert most_at_once(spans) == 1, f"{qpu}: {spans}"


@pytest.mark.timeout(0)
def test_as_many_jobs_share_a_qpu_as_it_has_lanes(
    site: ScriptedSite, users: tuple[User, User]
) -> None:
    number = max(12, JOBS // 4)
    (site.work / "hold").touch()
    site.control.ask("PATCH", "/qpus/crystal_mock", {"availability": "paused"})
    jobs = submit_all(site, users, tuple(LANES), number)
    for qpu, lanes in LANES.items():
        wait_until(lambda: len(at_vendor(site, qpu)) == lanes, f"all lanes of {qpu} to be used")  # noqa: B023
    site.control.ask("PATCH", "/qpus/crystal_mock", {"availability": "online"})
    (site.work / "hold").unlink()

    assert run_all(site, jobs, seconds=60 + 20 * number) == {"done": number}
    for qpu, lanes in LANES.items():
        spans = at_vendor(site, qpu)
        assert len(spans) == number // len(LANES)
        assert most_at_once(spans) == lanes, f"{qpu}: {spans}"


def test_a_gres_of_each_node_does_not_keep_two_jobs_apart(
    site: ScriptedSite, users: tuple[User, User]
) -> None:
    """What `qpu doctor` warns of; this also shows that the tests above would find an overlap."""
    wait = f"while [ $(ls {site.work}/started | wc -l) -lt 2 ]; do sleep 0.1; done; echo done"
    (site.work / "started").mkdir()
    (site.work / "started").chmod(0o1777)
    script = f"touch {site.work}/started/$SLURM_JOB_ID; {wait}"
    jobs = [submit(site, OF_A_NODE, user, script=script, licence=False) for user in users]
    assert run_all(site, jobs, seconds=90) == {"done": 2}
    assert most_at_once(at_vendor(site, OF_A_NODE)) == 2
