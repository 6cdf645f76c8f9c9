"""Providers whose blocks belong to a stage: what they refuse, submit and say."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState as BlockState
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import SubmitException

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider, QPUStage, block_launcher
from parsl_ext.block_launcher import ClassicalBlocks
from parsl_ext.providers import base, stage_blocks
from qrmi_workflows.errors import RequestError, UnknownQPUError
from qrmi_workflows.lease.stage import Stage, StageState, update_stage
from qrmi_workflows.schedulers.base import JobState, JobStatus
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.state.locks import lock_file

SITE = """
[qpus.ibm_a]
gres = "qpu:ibm_a"
lanes = 4
[qpus.ibm_b]
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))


class Calls:
    """Stands in for the scheduler's side of stages, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.closed: list[str] = []
        self.scripts: list[str] = []
        self.cancelled: list[str] = []

    def open(self, name: str, *, qpu: str, opener: str, **options: Any) -> Stage:
        self.opened.append({"name": name, "qpu": qpu, "opener": opener, **options})
        if not stage_blocks.StageFolder.of(name).stage.exists():
            return save(Stage(name=name, qpu=qpu, type="t", keeper_job="90", openers=(opener,)))
        return stage_blocks.find_stage(name)

    def close(self, name: str, *, opener: str) -> None:
        self.closed.append(f"{name} {opener}")

    def submit(self, _queue: object, script: Path) -> str:
        self.scripts.append(script.read_text())
        return str(len(self.scripts))

    def cancel(self, _queue: object, job_ids: list[str]) -> None:
        self.cancelled += job_ids


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    calls = Calls()
    monkeypatch.setattr(stage_blocks, "open_stage", calls.open)
    monkeypatch.setattr(stage_blocks, "close_stage", calls.close)
    monkeypatch.setattr(base.JobQueue, "submit", lambda *arguments: calls.submit(*arguments))
    monkeypatch.setattr(base.JobQueue, "cancel", lambda *arguments: calls.cancel(*arguments))
    yield calls
    stage_blocks._uses.clear()


def save(stage: Stage) -> Stage:
    with stage.folder.locked():
        stage.save()
    return stage


def change(name: str, **values: Any) -> Stage:
    return update_stage(name, lambda stage: replace(stage, **values))


def listed(jobs: dict[str, JobStatus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.JobQueue, "list_jobs", lambda _queue, _ids: jobs)


def pending(*, on: str = "") -> JobStatus:
    dependency = f"afterok:{on}(unfulfilled)" if on else ""
    return JobStatus(
        state=JobState.PENDING, reason="Dependency" if on else "Resources", dependency=dependency
    )


def load(provider: QPUSlurmProvider, folder: Path) -> QPUSlurmProvider:
    """Do to a provider what `parsl.load` does."""
    folder.mkdir(exist_ok=True)
    provider.script_dir = str(folder)
    return provider


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a,b", "x" * 65, "-a"])
def test_a_name_that_is_not_plain_is_refused_when_the_provider_is_made(name: str) -> None:
    for make in (
        lambda: QPUSlurmProvider(qpu="ibm_a", stage=name),
        lambda: QPUSlurmProvider(qpu=None, stage=name),
        lambda: LeaseLauncher(stage=name),
    ):
        with pytest.raises(RequestError, match="must be 1 to 64 letters"):
            make()


@pytest.mark.parametrize("given", ["--reservation=qday", ["--reservation=qday"]])
def test_the_keepers_job_gets_the_options_that_a_stage_names(
    site: None, calls: Calls, tmp_path: Path, given: str | list[str]
) -> None:
    stage = QPUStage("vqe", options=given)
    provider = load(QPUSlurmProvider(qpu="ibm_a", stage=stage), tmp_path / "run")
    load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")

    provider.submit("workers", 1)

    assert [each["options"] for each in calls.opened] == [("--reservation=qday",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exclusive"}, "must be one of: auto, dedicated, batch"),
        ({"lanes": 0}, "must be a positive integer"),
        ({"idle_limit": 0}, "must be above zero"),
        ({"idle_limit": float("nan")}, "must be above zero"),
    ],
)
def test_a_stage_with_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        QPUStage("vqe", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qpu": None}, "must be a QPU, unless a stage is given"),
        ({"qpu": ["ibm_a", "ibm_b"], "stage": "vqe"}, "its blocks must use one QPU"),
        ({"qpu": "ibm_a", "count": 2, "stage": "vqe"}, "with count=1"),
        ({"qpu": "ibm_a", "stage": QPUStage("vqe", qpu="ibm_b")}, "'ibm_b', but its blocks"),
        (
            {"qpu": "ibm_a", "stage": "vqe", "launcher": LeaseLauncher(stage="other")},
            "stage 'vqe', but their launcher joins stage 'other'",
        ),
        (
            {"qpu": "ibm_a", "launcher": LeaseLauncher(stage="vqe")},
            "no stage, but their launcher joins stage 'vqe'",
        ),
        ({"qpu": None, "stage": "vqe", "launcher": LeaseLauncher()}, "has no lease"),
        (
            {"qpu": "ibm_a", "stage": "vqe", "scheduler_options": "#SBATCH --comment=x"},
            "Remove --comment",
        ),
        (
            {"qpu": None, "stage": "vqe", "scheduler_options": "#SBATCH --dependency=x"},
            "Remove --dependency",
        ),
        ({"qpu": "ibm_a", "stage": "vqe", "clusters": "east"}, "on the cluster of its keeper"),
    ],
)
def test_blocks_that_no_stage_can_serve_are_refused_when_their_provider_is_made(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        QPUSlurmProvider(**arguments)


def test_a_stage_of_a_qpu_that_the_site_does_not_offer_is_refused() -> None:
    with pytest.raises(UnknownQPUError, match="ibm_c"):
        QPUSlurmProvider(qpu=None, stage=QPUStage("vqe", qpu="ibm_c"))


def test_an_executor_refuses_blocks_without_a_qpu_and_more_lanes_than_the_stage_has() -> None:
    with pytest.raises(RequestError, match="must use a QPU"):
        QPUExecutor(provider=QPUSlurmProvider(qpu=None, stage="vqe"))
    provider = QPUSlurmProvider(qpu="ibm_a", stage=QPUStage("vqe", lanes=2))
    assert QPUExecutor(provider=provider).lanes == 2
    with pytest.raises(RequestError, match="lanes=3: the stage of these blocks has 2"):
        QPUExecutor(provider=provider, lanes=3)


@pytest.mark.parametrize(("units", "most"), [(None, 4), (1, 4), (8, 8)])
def test_more_lanes_than_the_qpu_has_are_refused_when_the_executor_starts(
    units: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slurm, "qpu_units", lambda *_: units)
    monkeypatch.setattr(Slurm, "check_offered", lambda *_: None)

    QPUSlurmProvider(qpu="ibm_a", stage=QPUStage("vqe", lanes=most)).check()
    with pytest.raises(RequestError, match=f"lanes={most + 1}, but QPU 'ibm_a' has {most} here"):
        QPUSlurmProvider(qpu="ibm_a", stage=QPUStage("vqe", lanes=most + 1)).check()


def test_blocks_of_a_stage_take_its_lanes_unless_fewer_are_asked_for() -> None:
    provider = QPUSlurmProvider(qpu="ibm_a", stage="vqe")

    assert QPUExecutor(provider=provider)._lanes_in_block == ""
    assert QPUExecutor(provider=provider, lanes=2)._lanes_in_block == "2"


def test_calls_for_the_lanes_of_a_stage_are_counted_over_its_blocks() -> None:
    provider = QPUSlurmProvider(qpu="ibm_a", stage="vqe")
    shared = QPUExecutor(provider=provider, max_workers_per_node=8)
    own = QPUExecutor(provider=QPUSlurmProvider(qpu="ibm_a"), max_workers_per_node=8)
    for executor in (shared, own):
        executor._status |= {str(n): base.BlockStatus(BlockState.RUNNING) for n in range(3)}

    assert (shared._qpu_call_limit(), own._qpu_call_limit()) == (4 + 3, 3 * (4 + 1))


def test_two_providers_of_one_stage_must_agree_when_they_are_loaded(
    calls: Calls, tmp_path: Path
) -> None:
    load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")
    with pytest.raises(RequestError, match="different values of qpu: 'ibm_a' and 'ibm_b'"):
        load(QPUSlurmProvider(qpu="ibm_b", stage="vqe"), tmp_path / "run")
    load(QPUSlurmProvider(qpu="ibm_b", stage="vqe"), tmp_path / "another run")
    load(QPUSlurmProvider(qpu=None, stage=QPUStage("vqe", mode="batch")), tmp_path / "run")
    with pytest.raises(RequestError, match="different values of mode: 'batch' and 'dedicated'"):
        load(QPUSlurmProvider(qpu=None, stage=QPUStage("vqe", mode="dedicated")), tmp_path / "run")
    assert (calls.opened, calls.scripts) == ([], [])


def test_a_stage_that_is_open_with_another_qpu_is_refused_when_the_provider_is_loaded(
    calls: Calls, tmp_path: Path
) -> None:
    save(Stage(name="vqe", qpu="ibm_b", type="t"))

    with pytest.raises(RequestError, match="is open with QPU 'ibm_b', not 'ibm_a'"):
        load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")

    change("vqe", state=StageState.ENDED)
    load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")


def test_blocks_of_both_kinds_wait_for_the_stage_that_the_first_of_them_opens(
    calls: Calls, tmp_path: Path
) -> None:
    classical = load(
        QPUSlurmProvider(qpu=None, stage="vqe", launcher=SimpleLauncher()), tmp_path / "run"
    )
    stage = QPUStage("vqe", mode="batch", lanes=3, idle_limit=60, walltime="2:00:00")
    quantum = load(QPUSlurmProvider(qpu="ibm_a", stage=stage), tmp_path / "run")

    classical.submit("pool", 1)
    quantum.submit("pool", 1)

    opener = f"parsl {tmp_path / 'run'}"
    assert [(each["qpu"], each["mode"], each["opener"]) for each in calls.opened] == [
        ("ibm_a", "batch", opener)
    ] * 2
    assert calls.opened[0].items() >= {"lanes": 3, "idle_limit": 60, "time": "2:00:00"}.items()
    stage_id = stage_blocks.find_stage("vqe").id
    for script in calls.scripts:
        assert "#SBATCH --dependency=afterok:90\n" in script
        assert f"#SBATCH --comment=qpu_stage=vqe:{stage_id}\n" in script
        assert "--gres" not in script
        assert "--licenses" not in script
    first, second = calls.scripts
    assert "qpu lease exec" not in first
    assert "qpu lease exec --qpu=ibm_a --stage=vqe --stop-with-stage --alive=" in second


def test_a_block_of_a_stage_that_is_ready_does_not_wait(calls: Calls, tmp_path: Path) -> None:
    stage = save(Stage(name="vqe", qpu="ibm_a", type="t", keeper_job="90", state=StageState.READY))
    provider = load(QPUSlurmProvider(qpu=None, stage="vqe"), tmp_path / "run")

    with lock_file(stage.folder.alive):  # as its keeper does
        provider.submit("pool", 1)

    assert calls.opened[0]["qpu"] == "ibm_a", "that of the open stage"
    assert "--dependency" not in calls.scripts[0]
    assert "--comment=qpu_stage=vqe:" in calls.scripts[0]


def test_a_classical_block_without_a_qpu_anywhere_says_what_to_do(
    calls: Calls, tmp_path: Path
) -> None:
    provider = load(QPUSlurmProvider(qpu=None, stage="vqe"), tmp_path / "run")

    with pytest.raises(SubmitException, match="no QPU is named for it"):
        provider.submit("pool", 1)
    assert calls.scripts == []


def test_a_classical_block_opens_no_stage_that_has_been_ready_and_ended(
    calls: Calls, tmp_path: Path
) -> None:
    classical = load(
        QPUSlurmProvider(qpu=None, stage=QPUStage("vqe", qpu="ibm_a")), tmp_path / "run"
    )
    quantum = load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")
    classical.submit("pool", 1)
    change("vqe", state=StageState.ENDED, reason="it had nothing to do")

    with pytest.raises(SubmitException, match="has ended: it had nothing to do"):
        classical.submit("pool", 1)  # it was never ready: this block would need it
    change("vqe", generation=1)
    calls.opened.clear()
    classical.submit("pool", 1)
    assert calls.opened == []
    assert "--dependency" not in calls.scripts[-1]
    assert "--comment" not in calls.scripts[-1]

    with pytest.raises(SubmitException):
        quantum.submit("pool", 1)
    assert calls.opened, "a quantum block opens it again"


@pytest.fixture
def waiting(calls: Calls, tmp_path: Path) -> tuple[QPUSlurmProvider, str]:
    """Return a provider, and a block of it that waits for its stage."""
    provider = load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")
    return provider, provider.submit("pool", 1)


def shown(provider: QPUSlurmProvider, job_id: str) -> str:
    return str(provider.status([job_id])[0])


def test_the_mode_of_the_session_is_logged_with_its_reason(
    waiting: tuple[QPUSlurmProvider, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, job = waiting
    listed({job: JobStatus(state=JobState.RUNNING)}, monkeypatch)
    caplog.set_level("INFO", logger="parsl")

    change("vqe", session_mode="dedicated", mode_reason="as configured")
    for _ in range(2):
        shown(provider, job)
    change("vqe", session_mode="batch", mode_reason="it costs less")
    shown(provider, job)

    assert [each.getMessage() for each in caplog.records] == [
        "stage 'vqe' has a dedicated session: as configured",
        "stage 'vqe' has a batch session: it costs less",
    ]


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ("vqe", "Mode auto: its keeper chooses"),
        (QPUStage("vqe", mode="batch"), "Mode batch: its `QPUStage` sets it"),
        (QPUStage("vqe", mode="dedicated"), "Mode batch: the stage was open already"),
    ],
)
def test_a_run_logs_the_stage_that_it_opens_and_who_chooses_the_mode(
    calls: Calls,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stage: QPUStage | str,
    why: str,
) -> None:
    mode = "auto" if stage == "vqe" else "batch"
    save(Stage(name="vqe", qpu="ibm_a", type="t", keeper_job="90", mode=mode))
    provider = load(QPUSlurmProvider(qpu="ibm_a", stage=stage), tmp_path / "run")
    caplog.set_level("INFO", logger="parsl")

    for _ in range(2):
        provider.submit("pool", 1)

    (logged,) = caplog.messages
    assert logged.startswith("stage 'vqe': its blocks share one lease of QPU ibm_a, held by job 90")
    assert logged.endswith(why)


def test_a_warm_up_can_be_switched_off(calls: Calls, tmp_path: Path) -> None:
    stage = QPUStage("vqe", warm_up=False)
    load(QPUSlurmProvider(qpu=None, stage="vqe"), tmp_path / "run")
    load(QPUSlurmProvider(qpu="ibm_a", stage=stage), tmp_path / "run").submit("pool", 1)

    assert [each["warm_up"] for each in calls.opened] == [False]


def test_a_block_says_what_it_waits_for_and_why_it_was_cancelled(
    waiting: tuple[QPUSlurmProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, job = waiting
    jobs = {job: pending(on="90"), "90": pending()}
    listed(jobs, monkeypatch)

    text = "JobState.PENDING (waiting for stage 'vqe': its keeper, job 90, is pending (Resources))"
    assert shown(provider, job) == text
    jobs["90"] = JobStatus(state=JobState.RUNNING)
    assert "its keeper, job 90, is acquiring QPU 'ibm_a'" in shown(provider, job)
    change("vqe", reason="the vendor is busy")
    assert "waiting for stage 'vqe': the vendor is busy" in shown(provider, job)
    jobs[job] = pending()
    assert shown(provider, job) == "JobState.PENDING (Resources)"

    jobs[job] = JobStatus(state=JobState.CANCELLED)
    change("vqe", state=StageState.ENDED, reason="the vendor refused")
    assert shown(provider, job) == (
        "JobState.CANCELLED (stage 'vqe' has ended: the vendor refused)"
    )


def test_a_block_that_slurm_cancels_with_its_keeper_says_so(
    waiting: tuple[QPUSlurmProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, job = waiting
    ended = JobStatus(state=JobState.CANCELLED, reason="DependencyNeverSatisfied")
    listed({job: ended}, monkeypatch)

    assert "stage 'vqe': its keeper, job 90, has ended" in shown(provider, job)


def test_a_block_of_an_earlier_stage_of_the_name_does_not_take_the_new_ones_reason(
    waiting: tuple[QPUSlurmProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, job = waiting
    save(Stage(name="vqe", qpu="ibm_a", type="t", state=StageState.ENDED, reason="of another"))
    listed({job: JobStatus(state=JobState.TIMEOUT)}, monkeypatch)

    assert "of another" not in shown(provider, job)


def test_a_waiting_block_is_not_cancelled_as_idle_while_calls_wait_for_it(
    waiting: tuple[QPUSlurmProvider, str], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, job = waiting
    monkeypatch.setattr(base, "is_run_over", lambda _: False)
    monkeypatch.setattr(base, "are_calls_waiting", lambda _: True)

    assert provider.cancel([job]) == [False]
    assert (calls.cancelled, calls.closed) == ([], [])

    monkeypatch.setattr(base, "are_calls_waiting", lambda _: False)
    assert provider.cancel([job]) == [True]
    assert (calls.cancelled, calls.closed) == ([job], [])


def test_the_stage_is_closed_once_the_run_is_over_even_if_there_is_no_block_left(
    waiting: tuple[QPUSlurmProvider, str], calls: Calls, tmp_path: Path
) -> None:
    provider, job = waiting
    assert provider.cancel([]) == []  # no kernel is loaded: the run is over

    assert calls.closed == [f"vqe parsl {tmp_path / 'run'}"]
    assert provider.cancel([job]) == [True]
    assert calls.cancelled == [job]
    stage_blocks._close_all()
    assert len(calls.closed) == 2, "not again when the program exits"


def test_a_stage_that_was_not_opened_is_not_closed(calls: Calls, tmp_path: Path) -> None:
    provider = load(QPUSlurmProvider(qpu="ibm_a", stage="vqe"), tmp_path / "run")

    provider.cancel([])
    stage_blocks._close_all()

    assert calls.closed == []


def test_a_program_that_exits_without_cleaning_up_closes_its_stage(
    waiting: tuple[QPUSlurmProvider, str], calls: Calls
) -> None:
    stage_blocks._close_all()

    assert len(calls.closed) == 1


def test_a_classical_executor_of_parsls_own_takes_such_a_provider() -> None:
    provider = QPUSlurmProvider(qpu=None, stage="vqe", cores_per_node=2)

    executor = HighThroughputExecutor(label="cpu", provider=provider)

    assert executor.provider.qpu is None
    assert provider.job_options(1)[:2] == ["--nodes=1", "--ntasks-per-node=1"]


def run_block(command: str, alive: Path) -> subprocess.Popen[str]:
    script = ClassicalBlocks(SimpleLauncher()).wrap(command, 1, 1, "", alive=alive)
    pipe = subprocess.PIPE
    argv = ["bash", "-c", script]
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_a_classical_block_runs_and_ends_like_its_command(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()

    block = run_block("echo run; exit 3", tmp_path / "alive")

    assert block.wait(timeout=30) == 3
    assert block.stdout is not None
    assert block.stdout.readline() == "run\n"


def test_a_classical_block_does_not_start_after_its_program_has_ended(tmp_path: Path) -> None:
    out, err = run_block("echo run", tmp_path / "alive").communicate(timeout=30)

    assert out == ""
    assert "the program that submitted this block has ended" in err


def test_a_classical_block_ends_when_its_program_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_launcher, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(block_launcher, "ALIVE_SECONDS", 0.5)
    (tmp_path / "alive").touch()

    block = run_block("sleep 600", tmp_path / "alive")

    assert block.wait(timeout=30) == -signal.SIGTERM
