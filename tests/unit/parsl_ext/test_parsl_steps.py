"""The names of steps: one per call, the same in the next run, and never another app's."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from parsl_ext.block import run_as_step
from parsl_ext.steps import FullName, full_name, new_name, start_numbered
from qrmi_workflows.config import variables
from qrmi_workflows.errors import RequestError
from qrmi_workflows.journal.journal import Journal


class Calls:
    """Records the steps of calls; the test completes their futures."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def start(self, step: str) -> Future[Any]:
        self.steps.append(step)
        return Future()


def sample() -> None:
    """An app."""


def test_equal_calls_in_a_run_are_numbered_and_the_next_run_numbers_them_again() -> None:
    calls = Calls()
    for run in ("first", "second"):
        futures = [start_numbered(run, "s", calls.start) for _ in range(3)]  # type: ignore[arg-type]
        futures[0].set_result(1)
        start_numbered(run, "s", calls.start)  # type: ignore[arg-type]

    assert calls.steps == ["s", "s #2", "s #3", "s #4"] * 2


def test_only_a_failed_call_hands_its_number_on() -> None:
    calls = Calls()
    ended_well, failed, running = (
        start_numbered("run", "t", calls.start)  # type: ignore[arg-type]
        for _ in range(3)
    )
    ended_well.set_result(1)
    failed.set_exception(ZeroDivisionError())

    for _ in range(2):
        start_numbered("run", "t", calls.start)  # type: ignore[arg-type]

    assert calls.steps == ["t", "t #2", "t #3", "t #2", "t #4"]
    assert not running.done()


def test_a_call_that_ends_well_archives_its_tasks_and_a_failed_one_leaves_them() -> None:
    calls, futures = Calls(), []
    for name in ("well", "badly"):
        futures.append(start_numbered("run", name, calls.start))  # type: ignore[arg-type]
        entry, _ = Journal().step(name).claim("d" * 64, qpu="q", program="sampler")
        entry.submitted("task")
    futures[0].set_result(1)
    futures[1].set_exception(ZeroDivisionError())

    assert Journal().step("well").records() == []
    assert [record.task_id for record in Journal().step("badly").records()] == ["task"]


def test_the_app_and_the_program_are_part_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        """Another app."""

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "/home/me/study.py", raising=False)

    assert full_name("bell", sample) == "bell (app test_parsl_steps.sample of /home/me/study.py)"
    assert full_name("bell", other) != full_name("bell", sample)
    monkeypatch.delattr(main, "__file__")
    assert full_name("bell", sample).endswith(f" of {Path.cwd()})")
    assert full_name(FullName("qpu run -o x"), sample) == "qpu run -o x"


@pytest.mark.parametrize("name", ["", " ", 3, b"bell"])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(RequestError, match="must be a non-empty string"):
        full_name(name, sample)


@pytest.mark.parametrize(
    ("name", "on_stop"),
    [
        (new_name(sample, is_retried=True), "cancel"),
        (new_name(sample, is_retried=False), "cancel"),
        (full_name("bell", sample), "leave"),
        ("qpu run -o /results/bell.json", "leave"),
    ],
    ids=["retried", "not-retried", "named", "with-an-output"],  # generated names differ per process
)
def test_a_task_is_left_without_its_program_only_if_another_run_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, on_stop: str
) -> None:
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    monkeypatch.setenv("QPU_ALIVE", str(tmp_path / "gone"))

    with run_as_step(name):
        assert variables.on_stop() == on_stop
    assert (os.environ["QPU_ON_STOP"], os.environ["QPU_ALIVE"]) == ("leave", f"{tmp_path}/gone")


@pytest.mark.parametrize(("is_retried", "on_stop"), [(True, "leave"), (False, "cancel")])
def test_a_task_of_a_lost_block_is_left_if_the_call_is_retried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_retried: bool, on_stop: str
) -> None:
    alive = tmp_path / "alive"
    alive.touch()
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    monkeypatch.setenv("QPU_ALIVE", str(alive))

    with run_as_step(new_name(sample, is_retried=is_retried)):
        assert variables.on_stop() == on_stop
