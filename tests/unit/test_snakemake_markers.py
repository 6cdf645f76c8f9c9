"""When the executor asks Slurm, as a folder of markers tells it."""

import pytest

from snakemake_executor_plugin_slurm_qpu import markers
from snakemake_executor_plugin_slurm_qpu.markers import Markers


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(markers, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def watched(tmp_path):
    """The markers of a run with one job."""
    watched = Markers(tmp_path)
    watched.expect("7")
    return watched


def test_nobody_asks_before_there_is_a_marker(clock, watched):
    clock.now += 3600

    assert not watched.due()


def test_a_marker_is_asked_about_once_slurm_has_had_time_to_see_the_end(clock, watched):
    (watched.folder / "7").touch()

    assert not watched.due()
    clock.now += 0.21
    assert watched.due()


def test_the_pause_doubles_while_slurm_says_that_the_job_runs(clock, watched):
    (watched.folder / "7").touch()
    watched.due()
    asked = 0
    for _ in range(36000):
        clock.now += 0.1
        if watched.due():
            asked += 1
            watched.postpone("7")

    assert 100 < asked < 130  # an hour at 30 s, and the first minute


def test_a_slow_slurm_is_given_more_time_with_the_jobs_to_come(clock, watched):
    watched.expect("8")
    (watched.folder / "7").touch()
    watched.due()
    clock.now += 0.21
    watched.postpone("7")
    watched.forget("7")
    (watched.folder / "8").touch()
    watched.due()

    clock.now += 0.3
    assert not watched.due()
    clock.now += 0.11
    assert watched.due() == {"8"}


def test_a_marker_is_overdue_after_ten_seconds_and_holds_the_exit_status(clock, watched):
    (watched.folder / "7").write_text("3\n")
    assert watched.due() == frozenset()
    clock.now += 0.21

    assert watched.due() == {"7"}
    assert watched.status("7") == "3"
    assert not watched.overdue()
    clock.now += 10
    assert watched.overdue()
    assert watched.status("8") == ""


def test_a_settled_job_is_forgotten_with_its_marker(clock, watched):
    (watched.folder / "7").touch()
    watched.due()

    watched.forget("7")
    clock.now += 10

    assert not watched.due()
    assert not (watched.folder / "7").exists()


def test_half_a_marker_and_the_markers_of_others_are_none(clock, watched):
    for name in ("7.part", "8"):
        (watched.folder / name).touch()

    watched.due()
    clock.now += 10

    assert not watched.due()


def test_a_job_may_have_a_marker_of_another_name(clock, watched):
    watched.expect("9", "rule-1")
    (watched.folder / "rule-1").touch()

    watched.due()
    clock.now += 1

    assert watched.due()


def test_the_folder_stays_while_a_job_may_still_write_there(watched, tmp_path):
    folder = watched.folder
    watched.close()
    assert folder.exists()

    watched.forget("7")
    watched.close()
    assert not folder.exists()


def test_without_a_job_there_is_no_folder(tmp_path):
    watched = Markers(tmp_path / "none")

    assert not watched.due()
    watched.close()
    assert not (tmp_path / "none").exists()
