"""KillWait: the shares of each path fit into it, however short it is."""

from __future__ import annotations

from dataclasses import fields

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease import killwait
from qrmi_workflows.lease.killwait import (
    DEFAULT_SECONDS,
    KillWait,
    current_kill_wait,
    learn_kill_wait,
    start_kill_wait,
)
from qrmi_workflows.state.process import JobIdentity

JOB = JobIdentity(id="17")
SECONDS = [1, 5, 10, 30, 60, 600]
SHARES = [field.name for field in fields(KillWait) if field.name != "total"]


class Cluster:
    """A scheduler that counts how often it is asked for KillWait."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.requests = 0
        self.answers_after = 0.0

    def kill_wait(self, *, timeout: float) -> float | None:
        self.requests += 1
        return self.seconds if timeout > self.answers_after else None


@pytest.fixture
def cluster(monkeypatch):
    """Return a function that enters a job of a scheduler with this KillWait."""

    def enter(seconds: float | None, job: JobIdentity | None = JOB) -> Cluster:
        scheduler = Cluster(seconds)
        monkeypatch.setattr(killwait, "this_scheduler", lambda: scheduler)
        monkeypatch.setattr(killwait, "this_job", lambda: job)
        return scheduler

    monkeypatch.delenv("QPU_KILL_WAIT", raising=False)
    monkeypatch.setattr(killwait, "_has_asked", False)
    monkeypatch.setattr(killwait, "_learned", None)
    return enter


@pytest.fixture
def clock(monkeypatch):
    """Set the monotonic clock; KillWait of 30 s is not being counted."""
    monkeypatch.setenv("QPU_KILL_WAIT", "30")
    monkeypatch.setattr(killwait, "_started", None)

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(killwait.time, "monotonic", lambda: seconds)

    set_clock(1000)
    return set_clock


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_program_and_a_supervisor_end_before_sigkill(seconds):
    budget = KillWait.divide(seconds)

    assert budget.total == seconds
    assert 0 < budget.program_needs <= seconds
    assert 0 < budget.supervisor_needs <= seconds


@pytest.mark.parametrize("seconds", SECONDS)
def test_the_needs_add_up_every_wait_on_their_path(seconds):
    budget = KillWait.divide(seconds)

    assert budget.program_needs == 2 * budget.tasks + budget.release + budget.record
    assert budget.supervisor_needs == (
        budget.command + budget.kill + budget.release + budget.record
    )


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("share", SHARES)
def test_no_share_grows_beyond_that_of_the_default(share, seconds):
    at_default = getattr(KillWait.divide(DEFAULT_SECONDS), share)

    assert 0 < getattr(KillWait.divide(seconds), share) <= at_default
    if seconds >= DEFAULT_SECONDS:
        assert getattr(KillWait.divide(seconds), share) == at_default


def test_a_shorter_kill_wait_is_divided_in_the_same_proportions():
    whole, third = KillWait.divide(30), KillWait.divide(10)

    for share in SHARES:
        assert getattr(third, share) == pytest.approx(getattr(whole, share) / 3)


def test_the_variable_takes_precedence(cluster, monkeypatch):
    scheduler = cluster(60)
    monkeypatch.setenv("QPU_KILL_WAIT", "12")

    learn_kill_wait()

    assert current_kill_wait() == KillWait.divide(12)
    assert scheduler.requests == 0


def test_an_invalid_variable_is_refused(monkeypatch):
    monkeypatch.setenv("QPU_KILL_WAIT", "soon")

    with pytest.raises(ConfigError, match="QPU_KILL_WAIT='soon'"):
        current_kill_wait()


def test_the_default_is_assumed_until_the_scheduler_has_been_asked(cluster):
    cluster(60)

    assert current_kill_wait() == KillWait.divide(DEFAULT_SECONDS)
    learn_kill_wait()
    assert current_kill_wait() == KillWait.divide(60)


def test_a_busy_scheduler_has_some_seconds_to_answer(cluster):
    scheduler = cluster(10)
    scheduler.answers_after = 4.0

    learn_kill_wait()

    assert current_kill_wait() == KillWait.divide(10)


def test_the_scheduler_is_asked_once(cluster):
    scheduler = cluster(None)

    for _ in range(3):
        learn_kill_wait()

    assert scheduler.requests == 1
    assert current_kill_wait() == KillWait.divide(DEFAULT_SECONDS), "it did not say"


def test_outside_of_jobs_nothing_is_asked(cluster):
    scheduler = cluster(60, job=None)

    learn_kill_wait()

    assert scheduler.requests == 0


def test_what_is_left_of_kill_wait_is_divided(clock):
    start_kill_wait()

    clock(1012)

    assert current_kill_wait() == KillWait.divide(18)


def test_a_second_sigterm_does_not_prolong_kill_wait(clock):
    start_kill_wait()
    clock(1010)
    start_kill_wait()

    clock(1012)

    assert current_kill_wait() == KillWait.divide(18)


def test_kill_wait_may_have_started_earlier(clock):
    start_kill_wait(since=995)

    assert current_kill_wait() == KillWait.divide(25)


def test_a_process_that_outlives_kill_wait_has_all_of_it_at_the_next_sigterm(clock):
    start_kill_wait()
    clock(1030)
    assert current_kill_wait() == KillWait.divide(30)

    start_kill_wait()
    clock(1040)

    assert current_kill_wait() == KillWait.divide(20)


@pytest.mark.parametrize("leases", [1, 2, 5])
def test_leases_released_in_turn_fit_into_kill_wait(clock, leases):
    start_kill_wait()
    now = 1000.0

    for _ in range(leases):
        budget = current_kill_wait()
        now += budget.tasks + budget.release + budget.record
        clock(now)

    assert now < 1030
