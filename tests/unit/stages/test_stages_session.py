"""What a stage's keeper does with a session between tasks, at given times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.stages.modes import Action
from qrmi_workflows.stages.session import StageSession
from qrmi_workflows.state.locks import create_locked
from qrmi_workflows.tasks.usage import TaskUsage

TYPE = "ibm-quantum-compute-service"
FOUND = JobQPU(name="ibm_fez", type=TYPE, environment={}, token=None)


@dataclass
class Case:
    """A stage with a session, and a clock that the test sets.

    Attributes:
        session: The session.
        usage: The usage file of its lease.
        lease: Its lease, as far as the session looks at it.
        warm_ups: When a warm-up task was run.
    """

    usage: Path
    clock: list[float]
    session: StageSession
    lease: Any
    warm_ups: list[float] = field(default_factory=list)

    def add_tasks(self, *spans: tuple[float, float]) -> None:
        for start, end in spans:
            task = TaskUsage(
                qpu="ibm_fez", task_id=f"t{start}", started=start, ended=end, state="Completed"
            )
            task.append_to(self.usage)

    def look(self, at: float) -> Action | None:
        self.clock[0] = at
        return self.session.look(self.lease)


@pytest.fixture
def make(site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that makes a case, with these attributes of the stage."""
    clock = [0.0]
    monkeypatch.setattr("time.time", lambda: clock[0])

    def make(session_mode: str = "dedicated", policy: str = "", **stage: Any) -> Case:
        (tmp_path / "site.toml").write_text(f"[qpus.ibm_fez]\n{policy}")
        session = StageSession(
            Stage(name="vqe", qpu="ibm_fez", type=TYPE, id="0", **stage), lambda: True
        )
        session.settings(FOUND)
        usage = tmp_path / "lease.usage"
        held = SimpleNamespace(session_mode=session_mode, usage_path=lambda: usage)
        case = Case(usage, clock, session, SimpleNamespace(held=held, adopted=False))
        monkeypatch.setattr(
            session, "warm_up", lambda _lease, *, seconds: case.warm_ups.append(clock[0])
        )
        return case

    return make


IN_A_LOOP = [(0.0, 1.0), (31.0, 32.0), (62.0, 63.0), (93.0, 94.0)]  # gaps of 30 s
FAR_APART = [(0.0, 1.0), (81.0, 82.0), (162.0, 163.0)]  # gaps of 80 s, longer than the TTL


def test_a_session_that_is_idle_again_and_again_goes_on_as_a_batch(make, caplog):
    """Three gaps of 30 s: 90 s are billed for them, or 3 · 2 s and one wait of 10 s."""
    case = make()
    case.add_tasks(*IN_A_LOOP)

    assert case.look(95.0) is Action.BATCH

    assert "(for this gap and 2 more: let it lapse: 89 s billed, 0 s waiting;" in caplog.text
    assert "go on in a batch: 6 s billed, 10 s waiting)" in caplog.text


@pytest.mark.parametrize("who", ["user", "site"])
def test_a_mode_that_was_asked_for_is_kept(make, who):
    case = make(mode="dedicated") if who == "user" else make(policy='mode = "dedicated"\n')
    case.add_tasks(*IN_A_LOOP)

    assert case.look(95.0) is Action.REOPEN


def test_a_mode_that_an_earlier_keeper_has_chosen_is_kept(make, caplog):
    """It was killed after it had gone on in a batch."""
    case = make()
    stage = replace(case.session._stage, session_mode="batch", mode_reason="r")

    assert StageSession(stage, lambda: True).settings(FOUND) == {
        "QRMI_IBM_QCS_SESSION_MODE": "batch"
    }
    assert "opens a batch session: r" in caplog.text


def test_what_is_known_of_earlier_tasks_is_kept_in_another_lease(make):
    case = make()
    case.add_tasks(*FAR_APART)
    case.session.go_on_in_a_batch(case.lease)
    case.usage.unlink()
    case.lease.held.session_mode = "batch"
    case.add_tasks((243.0, 244.0))

    assert case.look(245.0) is Action.KEEP_WARM


def test_a_batch_is_kept_warm_shortly_before_it_would_lapse(make):
    case = make("batch")
    case.add_tasks(*FAR_APART)

    assert [case.look(163.0 + idle) for idle in (1, 30, 44)] == [Action.KEEP_WARM] * 3
    assert case.warm_ups == []
    case.look(163.0 + 46)
    assert case.warm_ups == [163.0 + 46]


def test_a_decision_is_logged_once(make, caplog):
    case = make("batch")
    case.add_tasks(*FAR_APART)

    for idle in range(1, 40):
        case.look(163.0 + idle)

    assert caplog.text.count("decides about its session: keep it warm") == 1


def hold_a_lane(case: Case) -> None:
    lanes = case.session._stage.lanes_folder
    lanes.mkdir(parents=True)
    case.lane = create_locked(lanes / "lane-0")  # type: ignore[attr-defined]


def adopt(case: Case) -> None:
    case.lease.adopted = True


def reopen(case: Case) -> None:
    case.clock[0] = 164.0
    case.session.reopened()


def have_no_mode(case: Case) -> None:
    case.lease.held.session_mode = None


@pytest.mark.parametrize(
    ("change", "at"),
    [
        pytest.param(hold_a_lane, 165.0, id="a task runs"),
        pytest.param(adopt, 165.0, id="the session is the site's"),
        pytest.param(reopen, 165.0, id="no task since it was reopened"),
        pytest.param(have_no_mode, 165.0, id="the vendor has no modes"),
        pytest.param(lambda _case: None, 163.0 + 61, id="it has lapsed"),
    ],
)
def test_nothing_is_decided_if_there_is_nothing_to_decide(make, caplog, change, at):
    case = make("batch")
    case.add_tasks(*FAR_APART)
    change(case)

    assert case.look(at) is None
    assert "decides" not in caplog.text


def test_two_gaps_are_seen_before_anything_is_decided(make):
    case = make()
    case.add_tasks(*FAR_APART[:2])

    assert case.look(83.0) is None


@pytest.mark.parametrize("who", ["user", "site"])
def test_without_warm_ups_a_session_lapses(make, who):
    case = make(
        "batch",
        policy="warm_up = false\n" if who == "site" else "",
        warm_up=who != "user",
    )
    case.add_tasks(*FAR_APART)

    assert case.look(163.0 + 50) is Action.LET_LAPSE
    assert case.warm_ups == []
