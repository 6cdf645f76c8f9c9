"""When jobs are checked, and when a job that Slurm no longer knows counts as failed."""

import asyncio
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.slurm import Slurm
from snakemake_executor_plugin_slurm_qpu import status_checks
from snakemake_executor_plugin_slurm_qpu.completion_markers import CompletionMarkers
from snakemake_executor_plugin_slurm_qpu.status_checks import FORGOTTEN_SECONDS, MarkerExecutor
from snakemake_executor_plugin_slurm_qpu.status_queries import Answer


class RateLimiter(nullcontext):
    """A limiter without a limit."""


class Checks(MarkerExecutor):
    """The checks alone: no workflow, no thread, and a Slurm that answers what the test sets."""

    def __init__(self, folder, *, min_job_age=300.0, has_accounting=False, status_command="sacct"):
        self._markers = CompletionMarkers(folder)
        self._next_scheduled_check, self._interval = 0.0, 40.0
        self._forgotten_since, self._held = {}, set()
        self._has_accounting, self._min_job_age = has_accounting, min_job_age
        self._submitted_job_clusters, self._failed_nodes = set(), set()
        self.workflow = SimpleNamespace(
            executor_settings=SimpleNamespace(
                init_seconds_before_status_checks=40,
                mark_all=False,
                status_command=status_command,
                keep_successful_logs=True,
            )
        )
        self.logger, self.run_uuid = logging.getLogger("checks"), "run"
        self.status_rate_limiter = RateLimiter()
        self.failed, self.succeeded, self.commands = [], [], []
        self.answer = Answer(statuses={}, forgotten=frozenset())

    def report_job_error(self, job_info, msg=None, **kwargs):
        self.failed.append(msg)

    def report_job_success(self, job_info):
        self.succeeded.append(job_info.external_jobid)

    def check(self, job_id="7"):
        """Check one job, and return whether it is still waited for."""

        async def check():
            job = SimpleNamespace(external_jobid=job_id, aux={})
            return [info async for info in self.check_active_jobs([job])]

        return bool(asyncio.run(check()))

    @property
    def seconds_to_next_check(self):
        return self._next_scheduled_check - status_checks.monotonic()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(status_checks, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def make_checks(tmp_path, clock, monkeypatch):
    """Make checks with a Slurm that the test sets."""

    def make_checks(**options) -> Checks:
        checks = Checks(tmp_path, **options)

        def ask_slurm(job_ids, *, commands, **others):
            checks.commands.append(list(commands))
            return checks.answer

        monkeypatch.setattr(status_checks, "ask_slurm", ask_slurm)
        return checks

    return make_checks


def answer(state: str | None, *errors: SchedulerError) -> Answer:
    """Return what Slurm says about job 7: a state, or that it does not know it."""
    if state is None:
        return Answer(statuses={}, forgotten=frozenset() if errors else {"7"}, errors=errors)
    line = "\x1f".join(["7", "7", state, "0", "None", "", "run", "\n"])
    return Answer(statuses=Slurm().parse_status(line), forgotten=frozenset())


def test_a_forgotten_job_without_a_marker_fails_after_a_minute(make_checks, clock):
    checks = make_checks()
    checks.answer = answer(None)

    assert checks.check()
    assert checks.seconds_to_next_check <= FORGOTTEN_SECONDS
    clock.now += FORGOTTEN_SECONDS / 2
    assert checks.check()
    clock.now += FORGOTTEN_SECONDS / 2
    assert not checks.check()
    assert "Slurm no longer knows it (it forgets jobs 300 s after their end)" in checks.failed[0]


def test_a_job_that_is_listed_again_has_not_been_forgotten(make_checks, clock):
    checks = make_checks()
    for state in (None, "RUNNING", None):
        checks.answer = answer(state)
        assert checks.check()
        clock.now += FORGOTTEN_SECONDS

    assert checks.failed == []


def test_the_time_without_an_answer_does_not_count(make_checks, clock, caplog):
    checks = make_checks()
    checks.answer = answer(None, SchedulerError("`squeue` failed.", ("squeue",)))
    for _ in range(10):
        assert checks.check()
        assert checks.seconds_to_next_check >= 40
        clock.now += FORGOTTEN_SECONDS

    assert "`squeue` failed. Snakemake keeps waiting" in caplog.text
    checks.answer = answer(None)
    assert checks.check()


def test_the_marker_of_a_forgotten_job_decides_at_once(make_checks):
    checks = make_checks()
    checks._markers.expect("7")
    (checks._markers.folder / "7").write_text("0\n")
    checks.answer = answer(None)

    assert not checks.check()
    assert checks.succeeded == ["7"]


def test_the_intervals_grow_to_three_minutes_and_start_again_with_news(make_checks, clock):
    checks = make_checks(min_job_age=3600.0)
    checks.answer = answer("RUNNING")
    intervals = []
    for _ in range(17):
        checks.check()
        intervals.append(checks.seconds_to_next_check)
        clock.now += intervals[-1]

    assert intervals == [50.0 + 10 * i for i in range(14)] + [180.0] * 3
    checks.answer = answer("COMPLETED")
    checks.check()
    assert checks.seconds_to_next_check == 40


def test_jobs_are_checked_before_slurm_can_have_forgotten_them(make_checks, clock):
    checks = make_checks(min_job_age=120.0)
    checks.answer = answer("RUNNING")
    for _ in range(20):
        checks.check()
        clock.now += checks.seconds_to_next_check

    assert checks.seconds_to_next_check <= 60


@pytest.mark.parametrize(
    ("min_job_age", "has_accounting", "marks_all"),
    [(119.0, False, True), (120.0, False, False), (None, False, False), (10.0, True, False)],
)
def test_all_jobs_leave_markers_where_slurm_forgets_early(
    make_checks, min_job_age, has_accounting, marks_all
):
    checks = make_checks(min_job_age=min_job_age, has_accounting=has_accounting)

    assert checks.marks_all == marks_all


@pytest.mark.parametrize(
    ("options", "scheduled", "early"),
    [
        ({"has_accounting": False}, ["squeue"], ["squeue"]),
        ({"has_accounting": True}, ["sacct", "squeue"], ["squeue", "sacct"]),
        (
            {"has_accounting": True, "status_command": "squeue"},
            ["squeue", "sacct"],
            ["squeue", "sacct"],
        ),
    ],
)
def test_squeue_is_asked_first_when_a_marker_has_appeared(
    make_checks, monkeypatch, options, scheduled, early
):
    checks = make_checks(**options)
    checks.answer = answer("RUNNING")

    checks.check()
    monkeypatch.setattr(checks._markers, "jobs_to_check", lambda: frozenset({"7"}))
    checks.check()

    assert checks.commands == [scheduled, early]


def test_a_held_job_is_named_once(make_checks, caplog):
    checks = make_checks()
    checks.answer = answer("SPECIAL_EXIT")

    assert checks.check()
    assert checks.check()

    assert caplog.text.count("SLURM-job '7' is held") == 1
