"""One journal, many processes, several hosts: nothing is lost, and nothing is submitted twice.

The hosts are namespaces: each has a name and a mount of its own, of the same file system.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState

WORKER = Path(__file__).with_name("journal_worker.py")
HOSTS, PROCESSES, RUNS = 3, 5, 12

pytestmark = pytest.mark.root  # only root can create namespaces


def on_host(name: str, state: Path, mount: Path, *argv: str) -> subprocess.Popen[bytes]:
    """Start a Python program on a host of that name, where the state folder is mounted."""
    mount.mkdir(parents=True, exist_ok=True)
    script = f'hostname {name} && mount --bind {state} {mount} && exec "$@"'
    command = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", sys.executable, *argv]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that all hosts share."""
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def crowd(state: Path, vendor: Path, tmp_path: Path, seed: float) -> Iterator[int]:
    """Run all processes on all hosts at once; yield their exit codes."""
    running = [
        on_host(
            f"n{host}",
            state,
            tmp_path / f"mount-{host}",
            *(str(WORKER), str(tmp_path / f"mount-{host}"), str(vendor)),
            *(f"{seed}-{host}-{process}", str(RUNS)),
        )
        for host in range(HOSTS)
        for process in range(PROCESSES)
    ]
    for process in running:
        process.communicate(timeout=110)
        yield process.returncode


@pytest.mark.timeout(300)
def test_many_processes_on_several_hosts_lose_nothing_and_pay_once(state, tmp_path):
    """They run the same steps, re-attach, archive and die, all at once."""
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    seed = time.time()
    print(f"seed {seed}")

    codes = list(crowd(state, vendor, tmp_path, seed))

    journal = Journal(state / "journal")
    records = [*journal.records(), *journal.records(archived=True)]
    recorded = [record.task_id for record in records if record.task_id]
    accepted = {path.name.removeprefix("task-") for path in vendor.glob("task-*")}
    ambiguous = len(list(vendor.glob("ambiguous-*")))
    intents = sum(record.state is RecordState.INTENT for record in records)
    print(f"{len(accepted)} tasks, {codes.count(-9)} of {len(codes)} killed, {ambiguous} ambiguous")
    assert {-9} <= set(codes) <= {0, -9}
    assert not (vendor / "shared").exists(), "two living processes held one task"
    assert len(set(recorded)) == len(recorded)
    assert set(recorded) <= accepted
    # What the vendor accepted is recorded, except ambiguous tasks: those reported already, and
    # those that a rerun would report.
    assert len(accepted) - len(recorded) <= ambiguous + intents
    completed = [record for record in records if record.state is RecordState.COMPLETED]
    assert all(record.result.task_id == record.task_id for record in completed)
    assert {record.owner.host for record in records} == {f"n{host}" for host in range(HOSTS)}


HOLD = """
import sys
from pathlib import Path
from qrmi_workflows.journal.journal import Journal
journal = Journal(Path(sys.argv[1]) / "journal")
step = journal.step("s")
entry, before = step.claim("d" * 64, qpu="q", program="sampler")
if before is None:
    entry.submitted("task")
print(entry.path.name, before and before.task_id, flush=True)
sys.stdin.readline()
journal.close(step)
print("closed", flush=True)
sys.stdin.readline()
"""


def claim_on(name: str, state: Path, tmp_path: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Claim the step's task on a host; return the process and the line that it printed."""
    mount = tmp_path / name
    process = on_host(name, state, mount, "-c", HOLD, str(mount))
    return process, process.stdout.readline().decode().strip()


@pytest.fixture
def claim(state: Path, tmp_path: Path) -> Iterator:
    """Claim the step's task on a host."""
    running = []

    def claim(name: str) -> tuple[subprocess.Popen[bytes], str]:
        running.append(claim_on(name, state, tmp_path))
        return running[-1]

    yield claim
    for process, _ in running:
        process.kill()
        process.communicate()


FIRST, SECOND = (f"{'d' * 32}-q-{number}.json" for number in (0, 1))


def test_the_task_of_a_living_process_on_another_host_is_left_alone(claim):
    _, first = claim("n1")
    _, second = claim("n2")

    assert (first, second) == (f"{FIRST} None", f"{SECOND} None")


def test_the_task_of_a_dead_process_on_another_host_is_taken_over(claim):
    """Its lock shows this: neither process is in a job that a scheduler could know."""
    process, first = claim("n1")
    process.kill()
    process.wait()

    assert (first, claim("n2")[1]) == (f"{FIRST} None", f"{FIRST} task")


def test_the_task_of_a_closed_run_is_taken_over_while_its_process_lives(claim):
    """As when an engine retries a step in another of its workers."""
    process, _ = claim("n1")
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"closed\n"

    assert claim("n2")[1] == f"{FIRST} task"
