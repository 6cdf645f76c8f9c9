"""Blocks whose QPU is chosen: once for all blocks, and they wait without a job until it is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.jobs.states import JobState as BlockState
from parsl.providers.errors import SubmitException
from waiting import wait_until

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider, QPUStage, qpu_config
from parsl_ext.providers import base, choices
from parsl_ext.qpus import chooser_of, memo_key, qpus_of
from parsl_ext.resumed import labels_with_tasks
from qrmi_workflows.choice.choose import Choice
from qrmi_workflows.config.constraints import QPUConstraint
from qrmi_workflows.errors import LeaseError, QPUError, RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord

SITE = """
[qpus.ibm_a]
licence = "a"
lanes = 2
[qpus.ibm_b]
licence = "b"
lanes = 5
[qpus.other]
licence = "other"
lanes = 9
"""


class World:
    """Stands in for the choice among QPUs and for Slurm."""

    def __init__(self) -> None:
        self.answer: str | QPUError = "ibm_b"
        self.asked: list[list[TaskRecord]] = []
        self.scripts: list[str] = []
        self.cancelled: list[str] = []
        self.may_choose = threading.Event()
        self.may_choose.set()

    def choose(
        self,
        constraints: Sequence[QPUConstraint],
        _asker: Any,
        records: Iterable[TaskRecord],
        **_: Any,
    ) -> tuple[Choice, ...]:
        assert self.may_choose.wait(60)
        self.asked.append(list(records))
        if isinstance(self.answer, QPUError):
            raise self.answer
        return tuple(
            Choice(qpu=str(self.answer), request=str(each), why="least busy")
            for each in constraints
        )

    def submit(self, _queue: object, script: Path) -> str:
        self.scripts.append(script.read_text())
        return str(len(self.scripts))

    def cancel(self, _queue: object, job_ids: list[str]) -> None:
        self.cancelled += job_ids


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "site.toml").write_text(SITE)
    resources = ", ".join(
        f'{{"name": "{name}", "type": "{type_}"}}'
        for name, type_ in (("ibm_a", "t-a"), ("ibm_b", "t-b"), ("other", "t-b"))
    )
    (tmp_path / "qrmi_config.json").write_text(f'{{"resources": [{resources}]}}')
    for name, value in {
        "QPU_SITE": tmp_path / "site.toml",
        "QPU_CONFIG": tmp_path / "qrmi_config.json",
        "QPU_STATE": tmp_path / "state",
    }.items():
        monkeypatch.setenv(name, str(value))
    found = World()
    monkeypatch.setattr(choices, "choose_for_step", found.choose)
    monkeypatch.setattr(choices, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(base.JobQueue, "submit", lambda *arguments: found.submit(*arguments))
    monkeypatch.setattr(base.JobQueue, "cancel", lambda *arguments: found.cancel(*arguments))
    monkeypatch.setattr(base.JobQueue, "list_jobs", lambda *_: {})
    return found


def provider(tmp_path: Path, qpu: Any = "ibm_*", **options: Any) -> QPUSlurmProvider:
    made = QPUSlurmProvider(qpu=qpu, **options)
    made.script_dir = str(tmp_path)
    return made


def submit(blocks: QPUSlurmProvider) -> str:
    return str(blocks.submit("workers", 1))


def state(blocks: QPUSlurmProvider, block: str) -> tuple[BlockState, str]:
    (status,) = blocks.status([block])
    return status.state, status.message or ""


def test_all_blocks_get_the_qpu_that_was_chosen_for_the_first(world: World, tmp_path: Path) -> None:
    blocks = provider(tmp_path)

    assert blocks.chosen == ()
    assert [submit(blocks) for _ in range(2)] == ["1", "2"]
    world.answer = "ibm_a"
    assert submit(blocks) == "3"

    assert blocks.chosen == ("ibm_b",)
    assert len(world.asked) == 1
    for script in world.scripts:
        assert "#SBATCH --licenses=b:1\n" in script
        assert " lease exec --qpu=ibm_b " in script
    assert blocks.cancel(["2", "3"]) == [True, True]
    assert world.cancelled == ["2", "3"]


def test_a_block_waits_without_a_job_while_no_qpu_fits_and_says_why(
    world: World, tmp_path: Path
) -> None:
    world.answer = LeaseError("no QPU satisfies ibm_* now: ibm_a: queue is 9", "", True)
    blocks = provider(tmp_path, qpu_where="queue < 5")
    one, other = submit(blocks), submit(blocks)

    wait_until(lambda: "queue is 9" in state(blocks, one)[1], "the reason")
    assert state(blocks, other)[0] is BlockState.PENDING
    assert world.scripts == []
    assert blocks.cancel([other]) == [True]
    assert state(blocks, other)[0] is BlockState.CANCELLED

    world.answer = "ibm_a"
    wait_until(lambda: bool(state(blocks, one)) and len(world.scripts) == 1, "its job")
    assert state(blocks, one)[0] is BlockState.PENDING
    assert blocks.cancel([one]) == [True]
    assert world.cancelled == ["1"]


def test_a_slow_choice_does_not_hold_up_parsl(world: World, tmp_path: Path) -> None:
    world.may_choose.clear()
    blocks = provider(tmp_path)

    block = submit(blocks)

    assert state(blocks, block) == (BlockState.PENDING, "a QPU is being chosen")
    world.may_choose.set()
    wait_until(lambda: bool(state(blocks, block)) and bool(world.scripts), "its job")


def test_what_can_never_be_satisfied_fails_the_block(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RequestError("no QPU can satisfy it")

    world.answer = RequestError("no QPU can satisfy it")
    monkeypatch.setattr(choices, "require_possible", refuse)
    blocks = provider(tmp_path)

    with pytest.raises(RequestError, match="no QPU can satisfy"):
        blocks.check()
    with pytest.raises(SubmitException, match="no QPU can satisfy"):
        submit(blocks)


def test_the_candidates_are_those_of_the_name_and_the_type(world: World, tmp_path: Path) -> None:
    assert provider(tmp_path).candidates == ("ibm_a", "ibm_b")
    assert provider(tmp_path, None, qpu_type="t-b").candidates == ("ibm_b", "other")
    assert provider(tmp_path, "ibm_a|emulated:fez").candidates == ("emulated:fez", "ibm_a")
    assert provider(tmp_path, "ibm_a").candidates is None
    assert provider(tmp_path, None, qpu_min_qubits=5).qpu == "*"


def test_a_block_has_workers_for_the_qpu_with_most_lanes(world: World, tmp_path: Path) -> None:
    executor = QPUExecutor(provider=provider(tmp_path))

    assert executor.lanes == 5
    assert executor._lanes_in_block == "", "the block looks up those of the QPU that it gets"
    assert executor._in_lane("s")["task_executor"]["k"] == {"qpu": None, "step": "s"}


def test_a_call_has_the_same_key_whichever_qpu_is_chosen(world: World, tmp_path: Path) -> None:
    executor = QPUExecutor(provider=provider(tmp_path))
    before = memo_key([executor])
    submit(executor.provider)

    assert memo_key([executor]) == before
    assert qpus_of(executor) == ("ibm_a", "ibm_b")
    assert before == memo_key([QPUExecutor(provider=provider(tmp_path, "ibm_b|ibm_a"))])
    assert before != memo_key([QPUExecutor(provider=provider(tmp_path, "ibm_b"))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "vqe"}, "stage 'vqe': its QPU must be named"),
        ({"stage": QPUStage("vqe")}, "stage 'vqe': its QPU must be named"),
        ({"launcher": LeaseLauncher(qpu="ibm_a")}, "is to be chosen, but their launcher leases"),
        ({"qpu_min_qubits": 0}, "min_qubits=0: must be a positive integer"),
        ({"count": 0}, "qpu=0 .*: must be a positive integer"),
    ],
)
def test_what_needs_the_qpus_name_is_refused(
    world: World, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        provider(tmp_path, **options)


def sent(step: str, qpu: str) -> list[TaskRecord]:
    """Leave a task of a step on a QPU."""
    entry, _ = Journal().step(step).claim("0" * 64, qpu=qpu, program="sampler")
    entry.submitted("task")
    return Journal().step(step).records()


def test_the_choice_takes_the_tasks_of_a_named_call_into_account(
    world: World, tmp_path: Path
) -> None:
    executor = QPUExecutor(provider=provider(tmp_path))
    records = sent("bell", "ibm_a")

    assert labels_with_tasks("bell", records, {"qpu": executor}) == ["qpu"]
    submit(executor.provider)

    assert [[record.qpu for record in each] for each in world.asked] == [["ibm_a"]]


def test_a_call_whose_tasks_are_on_another_qpu_than_the_chosen_one_is_refused(
    world: World, tmp_path: Path
) -> None:
    executor = QPUExecutor(provider=provider(tmp_path))
    submit(executor.provider)
    others = SimpleNamespace(provider=SimpleNamespace(qpu="ibm_a"))

    with pytest.raises(RequestError, match=r"has tasks on QPU ibm_a, but ibm_b was chosen.*paid"):
        labels_with_tasks("bell", sent("bell", "ibm_a"), {"qpu": executor})
    same: Any = {"qpu": executor, "other": others}
    assert labels_with_tasks("bell", sent("bell", "ibm_a"), same) == ["other"]
    assert labels_with_tasks("ball", sent("ball", "ibm_b"), {"qpu": executor}) == ["qpu"]
    assert labels_with_tasks("bull", sent("bull", "elsewhere"), {"qpu": executor}) == []


def test_what_was_emulated_keeps_no_call_from_a_real_qpu(world: World, tmp_path: Path) -> None:
    executor = QPUExecutor(provider=provider(tmp_path, "ibm_*|emulated:fez"))
    submit(executor.provider)

    assert labels_with_tasks("s", sent("s", "emulated:fez"), {"qpu": executor}) == []
    both = [*sent("s", "emulated:fez"), *sent("s", "ibm_b")]
    assert labels_with_tasks("s", both, {"qpu": executor}) == ["qpu"]


def test_without_a_scheduler_the_qpu_is_chosen_when_the_configuration_is_made(
    world: World,
) -> None:
    (executor,) = qpu_config("ibm_*", local=True).executors

    assert executor.provider.launcher.qpu == "ibm_b"
    assert qpus_of(executor) == ("ibm_a", "ibm_b")
    chooser = chooser_of(executor)
    assert chooser is not None
    assert chooser.chosen == ("ibm_b",)
