"""Reapers that are killed or run at the same time release and record every orphan once."""

import json
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases

ORPHANS = 4
HOLD = f"""
import time
from qrmi_workflows import open_lease
leases = [open_lease("ibm_quick") for _ in range({ORPHANS})]
print("ready", flush=True)
time.sleep(60)
"""
REAP = (sys.executable, "-m", "qrmi_workflows", "reap", "--json")


@pytest.fixture
def orphans(emulator):
    """Leave the leases of a killed process open."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    assert len(list(open_leases())) == ORPHANS


@pytest.fixture
def records_by_lease(tmp_path):
    """Count the records of each lease."""

    def count() -> Counter:
        files = (tmp_path / "state" / "leases").glob("*.jsonl")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return Counter(json.loads(line)["lease"] for line in lines)

    return count


def start_reaper() -> subprocess.Popen:
    return subprocess.Popen(REAP, stdout=subprocess.PIPE, text=True)


def released_by(reaper: subprocess.Popen) -> list[str]:
    output = reaper.communicate(timeout=60)[0]
    return [one["lease"] for one in json.loads(output) if one["released"]]


def test_concurrent_reapers_share_the_orphans(orphans, counted, fault, records_by_lease):
    fault("delay", route="PATCH */sessions/*", seconds=0.1)
    reapers = [start_reaper() for _ in range(3)]

    done = [lease for reaper in reapers for lease in released_by(reaper)]

    assert len(done) == len(set(done)) == ORPHANS
    assert counted()["sessions closed"] == ORPHANS
    assert set(records_by_lease().values()) == {1}


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_reaper_finishes_what_a_killed_one_left(
    orphans, counted, fault, matched, records_by_lease, when
):
    fault("delay", route="PATCH */sessions/*", seconds=30, when=when, count=1, after=1)
    reaper = start_reaper()
    wait_until(lambda: matched() == 2, "the second release")
    reaper.kill()
    reaper.communicate()

    again = subprocess.run(REAP, capture_output=True, text=True, check=True, timeout=60)

    assert len(json.loads(again.stdout)) == ORPHANS - 1
    assert counted()["sessions closed"] == ORPHANS
    assert records_by_lease().total() == len(records_by_lease()) == ORPHANS


def test_reapers_killed_at_random_moments_lose_nothing(orphans, counted, fault, records_by_lease):
    fault("delay", route="PATCH */sessions/*", seconds=0.02)
    seed = random.SystemRandom().randrange(10**6)
    dice = random.Random(seed)
    for _ in range(6):
        reapers = [start_reaper() for _ in range(2)]
        time.sleep(dice.uniform(0.15, 0.35))
        for reaper in reapers:
            reaper.kill()
            reaper.communicate()

    subprocess.run(REAP, capture_output=True, check=True, timeout=60)

    assert counted()["sessions closed"] == ORPHANS, f"seed {seed}"
    assert list(open_leases()) == []
    assert records_by_lease().total() == len(records_by_lease()) == ORPHANS, f"seed {seed}"


def test_orphans_of_a_silent_vendor_do_not_delay_other_leases(orphans, fault, matched, monkeypatch):
    monkeypatch.setattr("qrmi_workflows.lease.open._REAP_SECONDS", 0.3)
    fault("hang", route="PATCH */sessions/*", count=1)

    with open_lease("ibm_other"):
        wait_until(matched, "the request to release one of them")
        assert matched() == 1

    assert len(list(open_leases())) == ORPHANS


def test_a_silent_vendor_is_asked_once_for_all_its_orphans(orphans, fault, matched):
    fault("hang", route="PATCH */sessions/*", count=ORPHANS)

    done = reap(patience=0.3)

    assert [one.released for one in done] == [False] * ORPHANS
    assert all("did not answer release within 0.3 s" in one.error for one in done)
    wait_until(matched, "the request")
    assert matched() == 1


def test_invalid_files_do_not_prevent_a_lease(orphans, counted, tmp_path, caplog):
    """A folder stands in for an unreadable file, because root can read every file."""
    (tmp_path / "state" / "leases" / "open" / "0.json").mkdir()
    (tmp_path / "state" / "leases" / "open" / "1.json").write_bytes(b"\xff\x00")

    with open_lease("ibm_quick"):
        pass

    assert counted()["sessions closed"] == ORPHANS + 1
    assert "0.json: cannot be read: Is a directory. Remove it." in caplog.text
    assert "1.json: not the file of an open lease" in caplog.text


def test_an_orphan_that_cannot_be_locked_does_not_prevent_a_lease(orphans, monkeypatch):
    """As in a read-only state folder."""

    def read_only(path, _seconds):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("qrmi_workflows.lease.reap.try_lock", read_only)

    (first, *others) = reap(patience=1.0)
    assert not first.released
    assert "Read-only file system" in first.error
    assert len(others) == ORPHANS - 1
    open_lease("ibm_quick").release()


def test_a_damaged_usage_file_does_not_prevent_the_release(quick, counted):
    quick.held.usage_path().write_bytes(b"\xff\xfe not a line\n")

    quick.release()

    assert list(open_leases()) == []


def test_a_clock_set_back_gives_no_negative_durations(quick, monkeypatch, tmp_path):
    now = time.time()
    monkeypatch.setattr("qrmi_workflows.lease.records.time.time", lambda: now - 3600)

    quick.release()

    (file,) = (tmp_path / "state" / "leases").glob("*.jsonl")
    record = json.loads(file.read_text())
    assert (record["held"], record["busy"], record["idle"]) == (0, 0, 0)
