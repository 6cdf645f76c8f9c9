"""A step that has tasks at a QPU goes there again, whatever is less busy by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.choice import resumed
from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.choose import Choice
from qrmi_workflows.choice.resumed import choose_for_step, find_resumed
from qrmi_workflows.config.constraints import QPUConstraint, parse_qpus
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord
from qrmi_workflows.journal.step import Step

JOB = Asker(for_job=True)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Journal(tmp_path).step("s")


def submit(step: Step, *qpus: str) -> list[TaskRecord]:
    """Record a submitted task on each QPU; return all records of the step."""
    for number, qpu in enumerate(qpus):
        entry, _ = step.claim(f"{number:064x}", qpu=qpu, program="sampler")
        entry.submitted(f"task-{number}")
    return step.records()


def found(request: str | None, records: list[TaskRecord]) -> list[str | None]:
    return [name for name, _ in find_resumed(parse_qpus(request), records)]


def test_the_qpu_with_most_of_the_steps_tasks_is_taken(step):
    assert found("a|b", submit(step, "b", "a", "b")) == ["b"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("*", ["FRESNEL"]),
        ("ibm_*|c", ["ibm_a"]),
        ("c|d", [None]),
        ("ibm_*+FRES*", ["ibm_a", "FRESNEL"]),
        ("ibm_*+ibm_*", ["ibm_a", None]),
        ("ibm_a", [None]),
        ("ibm_a+ibm_*", [None, None]),
    ],
)
def test_each_part_of_a_request_gets_a_qpu_of_its_own_that_it_names(step, request_, expected):
    assert found(request_, submit(step, "ibm_a", "FRESNEL")) == expected


@pytest.mark.parametrize("request_", [None, "*", "*fez", "ibm_a|*"])
def test_a_request_that_names_no_emulated_qpu_finds_nothing_emulated(step, request_):
    records = submit(step, "emulated:fez", "emulated:fez")

    assert found(request_, records) == [None]


def test_what_was_emulated_keeps_no_step_from_a_real_qpu(step):
    records = submit(step, "emulated:fez", "emulated:fez", "ibm_a")

    assert found("ibm_a|emulated:fez", records) == ["ibm_a"]
    assert found("ibm_b|emulated:fez", records) == [None]
    assert found("emulated:torino|emulated:fez", records) == ["emulated:fez"]


def test_tasks_that_were_never_sent_or_have_failed_do_not_count(step):
    step.claim("0" * 64, qpu="a", program="sampler")
    entry, _ = step.claim("1" * 64, qpu="b", program="sampler")
    entry.submitted("task")
    entry.failed("broken", retryable=True)
    intended, _ = step.claim("2" * 64, qpu="c", program="sampler")
    intended.intend()

    assert found("a|b|c", step.records()) == ["c"]
    assert found("a|b", step.records()) == [None]


def test_conditions_that_held_when_the_tasks_were_submitted_need_not_hold_now(step, monkeypatch):
    asked: list[tuple[QPUConstraint, ...]] = []

    def choose(constraints: list[QPUConstraint], asker: Asker, **_: object) -> tuple[Choice, ...]:
        asked.append(tuple(constraints))
        return tuple(Choice(qpu=str(c.name or "other"), request="", why="") for c in constraints)

    monkeypatch.setattr(resumed, "choose", choose)
    constraints = parse_qpus("ibm_*+FRES*", where="queue < 1")

    first, second = choose_for_step(constraints, JOB, submit(step, "ibm_a"))

    assert asked == [(QPUConstraint(names=("ibm_a",)), constraints[1])]
    assert (first.qpu, second.qpu) == ("ibm_a", "other")
    assert first.request == "ibm_* with where='queue < 1'"
    assert first.why == "it has 1 task(s) of an earlier attempt at the step"
