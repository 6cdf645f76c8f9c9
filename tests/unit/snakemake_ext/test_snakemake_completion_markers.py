"""When the executor asks Slurm about a job, given the folder of markers."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from snakemake_executor_plugin_slurm_qpu import completion_markers
from snakemake_executor_plugin_slurm_qpu.completion_markers import (
    CompletionMarkers,
    render_marker_suffix,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(completion_markers, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def markers(tmp_path):
    """The markers of a run with one job."""
    markers = CompletionMarkers(tmp_path)
    markers.expect("7")
    return markers


def test_no_job_is_checked_before_it_has_left_a_marker(clock, markers):
    clock.now += 3600

    assert not markers.jobs_to_check()


def test_a_job_is_checked_once_slurm_has_had_time_to_notice_its_end(clock, markers):
    (markers.folder / "7").touch()

    assert not markers.jobs_to_check()
    clock.now += 0.21
    assert markers.jobs_to_check()


def test_the_pause_doubles_while_slurm_reports_the_job_as_running(clock, markers):
    (markers.folder / "7").touch()
    markers.jobs_to_check()
    checks = 0
    for _ in range(36000):
        clock.now += 0.1
        if markers.jobs_to_check():
            checks += 1
            markers.back_off("7")

    assert 100 < checks < 130  # an hour at 30 s, and the first minute


def test_a_slow_slurm_gets_more_time_for_later_jobs(clock, markers):
    markers.expect("8")
    (markers.folder / "7").touch()
    markers.jobs_to_check()
    clock.now += 0.21
    markers.back_off("7")
    markers.discard("7")
    (markers.folder / "8").touch()
    markers.jobs_to_check()

    clock.now += 0.3
    assert not markers.jobs_to_check()
    clock.now += 0.11
    assert markers.jobs_to_check() == {"8"}


def test_a_job_is_held_for_ten_seconds_at_most_and_its_marker_has_the_exit_status(clock, markers):
    (markers.folder / "7").write_text("3\n")
    assert markers.jobs_to_check() == frozenset()
    clock.now += 0.21

    assert markers.jobs_to_check() == {"7"}
    assert markers.exit_status("7") == "3"
    assert not markers.is_check_overdue()
    clock.now += 10
    assert markers.is_check_overdue()
    assert markers.exit_status("8") is None


def test_a_job_whose_outcome_is_known_is_forgotten_with_its_marker(clock, markers):
    (markers.folder / "7").touch()
    markers.jobs_to_check()

    markers.discard("7")
    clock.now += 10

    assert not markers.jobs_to_check()
    assert not (markers.folder / "7").exists()


def test_half_a_marker_and_the_markers_of_others_do_not_count(clock, markers):
    for name in ("7.part", "8"):
        (markers.folder / name).touch()

    markers.jobs_to_check()
    clock.now += 10

    assert not markers.jobs_to_check()


def test_a_marker_may_have_another_name_than_its_job(clock, markers):
    markers.expect("9", "rule-1")
    (markers.folder / "rule-1").touch()

    markers.jobs_to_check()
    clock.now += 1

    assert markers.jobs_to_check()


def test_the_folder_stays_while_a_job_may_still_write_to_it(markers, tmp_path):
    folder = markers.folder
    markers.close()
    assert folder.exists()

    markers.discard("7")
    markers.close()
    assert not folder.exists()


def test_two_threads_that_submit_the_first_jobs_get_the_same_folder(tmp_path):
    markers = CompletionMarkers(tmp_path)
    barrier = Barrier(8)

    def folder(_):
        barrier.wait()
        return markers.folder

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(folder, range(8)))) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_job_no_folder_is_created(tmp_path):
    markers = CompletionMarkers(tmp_path / "none")

    assert not markers.jobs_to_check()
    markers.close()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(("command", "status"), [("true", 0), ("exit 3", 1), ("(exit 3)", 1)])
def test_a_job_without_a_qpu_leaves_its_exit_status_too(tmp_path, shell, command, status):
    marker = tmp_path / "it's a folder" / "1-1"
    marker.parent.mkdir()
    text = f"( {command} ) && {render_marker_suffix(marker)}"
    in_double_quotes = text.replace('"', r"\"")  # as the stock executor passes it to sbatch
    done = subprocess.run(["sh", "-c", f'{shell} -c "{in_double_quotes}"'], check=False)

    assert done.returncode == status
    assert marker.read_text() == f"{status}\n"
    assert [marker] == list(marker.parent.iterdir())


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1)])
def test_a_marker_that_cannot_be_written_changes_nothing(tmp_path, shell, command, status):
    text = f"{command} && {render_marker_suffix(tmp_path / 'none' / '1-1')}"
    done = subprocess.run([shell, "-c", text], capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
