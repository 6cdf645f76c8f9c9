"""A QPU goes away before or during a step: its open tasks move, and nothing is paid for twice."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_payloads import bell, pulse
from pages import blocks
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    PayloadError,
    QPUError,
    RequestError,
    StepMovedError,
    TaskFailedError,
)
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.lease import fallback
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.payloads import Payload
from qrmi_workflows.tasks import presence

DOCS = Path(__file__).parents[2] / "docs"
SERVERS = {
    "ibm-quantum-compute-service": servers("ibm-quantum-compute-service", offline=True),
    "ibm-quantum-system": servers("ibm-quantum-system", offline=True),
    "pasqal-cloud": [{}],
}
FALLBACKS = {
    "ibm-quantum-compute-service": "ibm_second",
    "ibm-quantum-system": "ibm_system",
    "pasqal-cloud": "EMU_MPS",
}


def named(type_: str, server: dict[str, bool]) -> str:
    """Return the name of the QPU with this server."""
    if type_ == "pasqal-cloud":
        return "EMU_FREE"
    return f"{type_.rpartition('-')[2]}_{'_'.join(server) or 'default'}"


def qpu(name: str, type_: str, seconds: float, server: dict[str, bool], lanes: int = 1) -> str:
    return f"""
[qpus.{name}]
type = "{type_}"
simulator = "null"
execution_seconds = {seconds}
lanes = {lanes}
server = {to_toml(server)}
"""


FAILS_RUNNING = "service_offline_fails_running"
CONFIG = "".join(
    qpu(
        named(type_, server),
        type_,
        3.0 if named(type_, server) == FAILS_RUNNING else 1.0,
        server,
        lanes=1 + (type_ == "ibm-quantum-system"),
    )
    for type_, kinds in SERVERS.items()
    for server in kinds
)
CONFIG += "".join(qpu(name, type_, 0.05, {}, lanes=2) for type_, name in FALLBACKS.items())
CONFIG += "".join(
    qpu(name, "ibm-quantum-compute-service", 0.05, {}) for name in ("ibm_fez", "ibm_torino")
)
CONFIG += qpu("ibm_first", "ibm-quantum-compute-service", 0.05, {})
CONFIG += qpu("ibm_slow", "ibm-quantum-compute-service", 3.0, {})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("fallback")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def set_state(
    site: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str, str], None]]:
    """Set whether a QPU is online; the user has an empty state folder."""
    monkeypatch.setenv("QPU_CONFIG", str(site.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("QPU_FALLBACK_WAIT", "4")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("QPU_LANES", "2")  # the client's; the QPU itself has fewer
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(presence, "_LOOK_SECONDS", 0.1)
    changed = set()

    def change(qpu: str, state: str) -> None:
        changed.add(qpu)
        site.control.ask("PATCH", f"/qpus/{qpu}", {"availability": state})

    yield change
    site.control.ask("DELETE", "/faults")
    for qpu in changed:
        change(qpu, "online")


@pytest.fixture
def completed(site: Emulator) -> Callable[[], dict[str, int]]:
    """Count the tasks that each QPU has completed since the test started."""

    def now() -> dict[str, int]:
        return {name: each["tasks"]["completed"] for name, each in site.counters()["qpus"].items()}

    before = now()
    return lambda: {name: n - before[name] for name, n in now().items() if n > before[name]}


@pytest.fixture
def accepted(site: Emulator) -> Callable[[], Counter[str]]:
    """Count the tasks that each QPU has accepted since the test started."""

    def now() -> Counter[str]:
        qpus = site.counters()["qpus"]
        return Counter({name: each["tasks"]["accepted"] for name, each in qpus.items()})

    before = now()
    return lambda: now() - before


def payload_for(lease: Lease, shots: int) -> dict[str, Any]:
    if lease.type.startswith("ibm"):
        return bell(shots)
    return pulse(json.loads(lease.target())[0]["specs"], shots)


def records(step: str) -> dict[str, TaskRecord]:
    """Return a step's records, by QPU; each has one task there."""
    return {record.qpu: record for record in Journal().step(step).records()}


def test_a_step_starts_on_the_next_qpu_if_its_own_is_offline(set_state, completed):
    set_state("ibm_first", "offline")

    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        result = lease.run(bell())

    assert lease.qpu == result.qpu == "ibm_second"
    assert completed() == {"ibm_second": 1}
    found = records("s")
    assert found["ibm_first"].state is RecordState.MOVED
    assert found["ibm_first"].moved_to == found["ibm_second"].moved_from
    assert found["ibm_first"].moved_to.to_qpu == "ibm_second"


def test_only_open_tasks_move_when_the_qpu_goes_offline_during_a_step(set_state, completed):
    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        first = lease.run(bell(1))
        set_state("ibm_first", "offline")
        second = lease.run(bell(2))

    assert (first.qpu, second.qpu) == ("ibm_first", "ibm_second")
    assert completed() == {"ibm_first": 1, "ibm_second": 1}


def test_a_queued_task_is_cancelled_before_it_moves(set_state, site):
    states: list[str] = []
    with open_lease("service_default", step="s", fallback=["ibm_second"]) as lease:
        set_state("service_default", "paused")  # it accepts tasks, and starts none
        future = lease.submit(bell(), on_state=lambda task, state: states.append(state))
        wait_until(lambda: "Queued" in states, "the task to be queued")
        set_state("service_default", "offline")
        result = future.result(60)

    assert result.qpu == "ibm_second"
    counters = site.counters()["qpus"]["service_default"]["tasks"]
    assert counters["cancelled"] >= 1
    found = records("s")
    assert found["service_default"].moved_to.task_id == found["service_default"].task_id
    assert "offline" in found["service_default"].moved_to.reason


def test_a_rerun_finds_what_either_qpu_has_completed(set_state, completed):
    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        first = lease.run(bell(1))
        set_state("ibm_first", "offline")
        second = lease.run(bell(2))
    set_state("ibm_first", "online")

    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        again = [lease.run(bell(1)), lease.run(bell(2))]

    assert [each.task_id for each in again] == [first.task_id, second.task_id]
    assert completed() == {"ibm_first": 1, "ibm_second": 1}


def test_a_rerun_without_the_fallback_does_not_use_its_results(set_state, caplog):
    set_state("ibm_first", "offline")
    with open_lease("ibm_first", step="s", fallback=["ibm_second"]) as lease:
        lease.run(bell())
    set_state("ibm_first", "online")

    with open_lease("ibm_first", step="s") as lease:
        result = lease.run(bell())

    assert result.qpu == "ibm_first"
    assert "moved a task from QPU 'ibm_first' to 'ibm_second'" in caplog.text


def test_tasks_that_wait_for_a_lane_move_although_the_lane_is_not_free(
    set_state, completed, monkeypatch
):
    """The one that has the lane runs to its end where it is."""
    monkeypatch.setenv("QPU_LANES", "1")
    with open_lease("ibm_slow", step="s", fallback="ibm_second") as lease:
        states: list[str] = []
        running = lease.submit(bell(1), on_state=lambda task, state: states.append(state))
        wait_until(lambda: "Running" in states, "the first task to run")
        waiting = [lease.submit(bell(shots)) for shots in (2, 3)]
        set_state("ibm_slow", "offline")
        results = [future.result(60) for future in (running, *waiting)]

    assert [each.qpu for each in results] == ["ibm_slow", "ibm_second", "ibm_second"]
    assert completed() == {"ibm_slow": 1, "ibm_second": 2}


def test_a_payload_is_transpiled_again_if_the_program_can_do_that(set_state):
    seen: list[tuple[str, str]] = []

    def on_move(payload: Payload, qpu: str, target: str) -> dict[str, Any]:
        seen.append((payload.digest, qpu))
        assert "n_qubits" in target
        return bell(77)

    set_state("ibm_first", "offline")
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        lease.run(bell(5), on_move=on_move)

    digests = [Payload.from_content(bell(shots)).digest for shots in (5, 77)]
    found = records("s")
    assert [found[qpu].digest for qpu in ("ibm_first", "ibm_second")] == digests
    assert found["ibm_first"].moved_to.to_digest == digests[1]
    assert seen == [(digests[0], "ibm_second")]


def test_a_rerun_finds_what_was_transpiled_again(set_state):
    set_state("ibm_first", "offline")
    program = Path(__file__).with_name("transpiling.py")
    ids = [subprocess.check_output([sys.executable, program], text=True) for _ in range(2)]

    assert ids[0] == ids[1]


def test_a_rerun_finds_it_although_the_qpu_that_has_it_is_away(set_state):
    def on_move(payload: Payload, qpu: str, target: str) -> dict[str, Any]:
        assert "n_qubits" in target
        return bell(77)

    set_state("ibm_first", "offline")
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        first = lease.run(bell(5), on_move=on_move)
    set_state("ibm_first", "online")
    set_state("ibm_second", "offline")
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        assert lease.run(bell(5), on_move=on_move).task_id == first.task_id


def test_a_qpu_that_another_job_may_get_has_not_gone(set_state, monkeypatch):
    """A rerun has taken a result from it; then its own QPU goes."""
    set_state("ibm_first", "offline")
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        lease.run(bell(1))
    set_state("ibm_first", "online")

    def refuse(qpu: str) -> None:
        raise RequestError(f"QPU {qpu!r} was not granted to this job.")

    monkeypatch.setattr(fallback, "require_grant", refuse)
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        assert lease.run(bell(1)).qpu == "ibm_second"
        set_state("ibm_first", "offline")
        with pytest.raises(StepMovedError, match="ibm_second"):
            lease.run(bell(2))


def test_a_payload_that_does_not_fit_the_next_qpu_stays_and_says_why(set_state, accepted):
    """The fallback has 156 qubits; its target was not in the cache when the task was submitted."""
    wide = bell()
    wide["parameters"]["pubs"][0][0] = wide["parameters"]["pubs"][0][0].replace("$1", "$200")
    set_state("ibm_first", "paused")
    with open_lease("ibm_first", step="s", fallback="ibm_second") as lease:
        future = lease.submit(wide)
        wait_until(lambda: accepted()["ibm_first"] == 1, "the task")
        set_state("ibm_first", "offline")
        error = future.exception(60)

    assert isinstance(error, PayloadError)
    assert "QPU 'ibm_first' has gone (its vendor reports it offline)" in error.message
    assert "cannot run on 'ibm_second'" in error.message
    assert accepted()["ibm_second"] == 0
    set_state("ibm_first", "online")  # now the target is known
    with (
        open_lease("ibm_first", step="t", fallback="ibm_second") as lease,
        pytest.raises(PayloadError, match="uses qubit 200; must be 0 to 155 on QPU 'ibm_second'"),
    ):
        lease.submit(wide)


def test_a_payload_of_another_vendor_is_refused_before_anything_is_submitted(set_state, accepted):
    with (
        open_lease("ibm_first", step="s", fallback="EMU_MPS") as lease,
        pytest.raises(PayloadError, match="cannot run on 'EMU_MPS', to which the step would"),
    ):
        lease.run(bell())

    assert accepted()["ibm_first"] == 0


def test_a_task_at_a_vendor_that_cannot_be_reached_is_waited_for_and_does_not_move(
    set_state, site, accepted, caplog, monkeypatch
):
    monkeypatch.setenv("QPU_FALLBACK_WAIT", "2")
    with open_lease("service_default", step="s", fallback="ibm_second") as lease:
        site.control.ask(
            "POST", "/faults", {"kind": "status", "status": 503, "route": "GET */jobs/*"}
        )
        future = lease.submit(bell(), on_stop="leave")
        wait_until(lambda: accepted()["service_default"] == 1, "the task")
        assert isinstance(future.exception(60), QPUError)
        site.control.ask("DELETE", "/faults")

    assert "a task may still be run and billed" in caplog.text
    assert "waiting for it" in caplog.text
    assert accepted()["ibm_second"] == 0
    with open_lease("service_default", step="s", fallback="ibm_second") as lease:
        assert lease.run(bell()).qpu == "service_default"
    assert accepted()["service_default"] == 1


def test_a_step_succeeds_although_the_qpu_that_has_gone_cannot_be_released(set_state, site, caplog):
    with open_lease("service_default", step="s", fallback="ibm_second") as lease:
        set_state("service_default", "offline")
        result = lease.run(bell())
        # The other QPU is released first.
        rule = {"kind": "status", "status": 400, "route": "PATCH */sessions/*", "after": 1}
        site.control.ask("POST", "/faults", rule)

    assert result.qpu == "ibm_second"
    assert "the lease of QPU 'service_default' could not be released" in caplog.text
    site.control.ask("DELETE", "/faults")
    reap()


def test_an_ambiguous_task_does_not_move(set_state, site, accepted):
    site.control.ask(
        "POST", "/faults", {"kind": "drop", "when": "after", "count": 1, "route": "POST */jobs"}
    )
    with (
        open_lease("ibm_first", step="s", fallback="ibm_second") as lease,
        pytest.raises(AmbiguousTaskError),
    ):
        lease.run(bell())
    set_state("ibm_first", "offline")
    with (
        open_lease("ibm_first", step="s", fallback="ibm_second") as lease,
        pytest.raises(AmbiguousTaskError),
    ):
        lease.run(bell())

    assert accepted()["ibm_first"] == 1
    assert accepted()["ibm_second"] == 0


def fail_with_its_qpu(set_state: Callable[[str, str], None], fallback: str | None) -> None:
    """Run a task that fails with its QPU, which is back before that is seen."""

    def fail(_task: str, state: str) -> None:
        if state == "Running":  # the thread that called this asks nothing meanwhile
            set_state(FAILS_RUNNING, "offline")
            set_state(FAILS_RUNNING, "online")

    with (
        open_lease(FAILS_RUNNING, step="s", fallback=fallback) as lease,
        pytest.raises(TaskFailedError),
    ):
        lease.run(bell(), on_state=fail)


def test_a_rerun_submits_what_has_failed_unbilled_perhaps_with_its_qpu(set_state, accepted):
    fail_with_its_qpu(set_state, "ibm_second")

    with open_lease(FAILS_RUNNING, step="s", fallback="ibm_second") as lease:
        result = lease.run(bell())

    assert result.qpu == FAILS_RUNNING
    assert accepted() == {FAILS_RUNNING: 2}


def test_without_a_fallback_what_has_failed_is_not_submitted_again(set_state, accepted):
    fail_with_its_qpu(set_state, None)

    with (
        open_lease(FAILS_RUNNING, step="s") as lease,
        pytest.raises(TaskFailedError, match="qpu journal prune"),
    ):
        lease.run(bell())

    assert accepted() == {FAILS_RUNNING: 1}


def test_the_command_line_moves_a_task_and_the_journal_shows_it(set_state, tmp_path):
    set_state("ibm_first", "offline")
    (tmp_path / "bell.json").write_text(json.dumps(bell()))
    result = tmp_path / "r.json"
    step = [sys.executable, "-m", "qrmi_workflows", "run", "bell.json", "-o", "r.json", "-q"]
    lease = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--step", "s"]
    journal = shlex.join([sys.executable, "-m", "qrmi_workflows", "journal", "list"])
    seen = ["bash", "-c", f"{journal}; env | grep QPU_MOVED_FROM; exit 3"]

    direct = subprocess.run(
        [*step, "--qpu", "ibm_first", "--fallback", "ibm_second"], cwd=tmp_path, check=False
    )
    assert direct.returncode == 0
    assert json.loads(result.read_text())["qpu"] == "ibm_second"
    result.unlink()
    options = ["--qpu", "ibm_first", "--fallback", "ibm_second", "--"]
    script = f"{shlex.join(step)} && {shlex.join(seen)}"
    under = subprocess.run(
        [*lease, *options, "bash", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert under.returncode == 3, under.stderr
    assert json.loads(result.read_text())["qpu"] == "ibm_second"
    assert "QPU_MOVED_FROM=ibm_first" in under.stdout
    assert re.search(r"ibm_first -> ibm_second +sampler +moved", under.stdout)
    assert re.search(r"ibm_second +sampler +completed", under.stdout)


def test_the_pages_snippets_run(set_state, tmp_path, monkeypatch):
    """Those of docs/fail-over.md, while the QPU is away."""
    monkeypatch.chdir(tmp_path)
    set_state("ibm_fez", "offline")
    for shots, name in ((10, "bell"), (20, "bell.ibm_torino")):
        Path(f"{name}.json").write_text(json.dumps(bell(shots)))
    for block in blocks(DOCS / "fail-over.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(block, "fail-over.md", "exec"), names)  # noqa: S102 - the page's own code
        assert names["result"].qpu == "ibm_torino"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "server"), [(type_, server) for type_, kinds in SERVERS.items() for server in kinds]
)
def test_no_task_of_a_qpu_that_goes_offline_is_lost_or_paid_for_twice(
    site, set_state, completed, type_, server
):
    """One task runs, the other is queued; some servers fail the first, or cannot cancel."""
    name, fallback = named(type_, server), FALLBACKS[type_]

    def run_two() -> list[Any]:
        with open_lease(name, step="s", fallback=fallback) as lease:
            futures = [lease.submit(payload_for(lease, shots)) for shots in (1, 2)]
            if completed() == {}:
                wait_until(lambda: unfinished() == 2, "the tasks to be accepted")
                set_state(name, "online")
                set_state(name, "offline")
            return [future.exception(60) or future.result() for future in futures]

    def unfinished() -> int:
        tasks = site.counters()["qpus"][name]["tasks"]
        return tasks["queued"] + tasks["running"]

    set_state(name, "paused")
    first = run_two()
    set_state(name, "online")
    again = run_two()

    assert not any(isinstance(each, Exception) for each in again), again
    for before, after in zip(first, again, strict=True):
        if isinstance(before, QPUError):
            assert "may still be run and billed" in before.message
        else:
            assert after.task_id == before.task_id
    assert sum(completed().values()) == 2
    charges = site.billing()["qpus"][name]["tasks"]
    assert all(each["qpu_seconds"] == 0 for each in charges if each["state"] != "completed")
