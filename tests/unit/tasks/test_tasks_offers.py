"""Offers of payloads between processes: claimed or withdrawn, never both."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qrmi_workflows.tasks.limits import Coalesce
from qrmi_workflows.tasks.offers import Leadership, Offer, Offers
from qrmi_workflows.tasks.waiting_room import Guest
from qrmi_workflows.vendors.base import Coalescible

FOLDER = "lanes/offers"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a payload's record; its folder exists."""
    path = tmp_path / "journal" / "open" / "AB" / "ABCD" / "task.json"
    path.parent.mkdir(parents=True)
    return path


def guest(record: Path, key: str = "k", pubs: int = 1, **limits: Any) -> Any:
    run = SimpleNamespace(
        entry=SimpleNamespace(path=record),
        payload=SimpleNamespace(vendor="ibm", content={"n": 1}),
        on_ambiguous="fail",
        on_stop=None,
        default_on_stop=lambda: "cancel",
    )
    needs = Coalescible(key=key, pubs=pubs, executions=pubs, size=1)
    future: Any = type("Future", (), {"run": run})()
    return Guest(future=future, pool=None, limits=Coalesce(**limits), needs=needs, since=0.0)


class Room:
    def __init__(self, *guests: Any) -> None:
        self._guests = list(guests)

    def is_set(self) -> bool:
        return False

    def guests(self) -> list[Any]:
        return self._guests


def offering(folder: Path, *guests: Any) -> Any:
    """Return offers that have been made."""
    room: Any = Room(*guests)
    offers = Offers(folder, room)
    while not list(folder.glob("*.offer")):
        offers.is_set()
        time.sleep(0.001)
    return offers


def claim(folder: Path, record: Path, *guests: Any) -> Leadership:
    leadership = Leadership(folder, record)
    leadership.claim(guests or [guest(record)])
    return leadership


def test_a_free_lane_is_taken_without_an_offer(tmp_path, record):
    room: Any = Room(guest(record))
    offers = Offers(tmp_path / FOLDER, room)
    assert not offers.is_set()
    assert not (tmp_path / FOLDER).exists()
    assert offers.withdraw() == []


def test_an_offer_is_claimed_and_its_end_is_told(tmp_path, record):
    folder = tmp_path / FOLDER
    offers = offering(folder, guest(record))
    (file,) = folder.glob("*.offer")
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)

    leadership = claim(folder, record)

    (offer,) = leadership.offers
    assert isinstance(offer, Offer)
    assert (offer.record, offer.content, offer.is_wanted()) == (record, {"n": 1}, True)
    (claimed,) = offers.withdraw()
    assert claimed.ending() is None
    leadership.end({"alone": True})
    assert claimed.ending() == {"alone": True}
    claimed.close()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert not list((tmp_path / "journal" / "coalesced").iterdir())


def test_an_offer_that_is_withdrawn_is_not_claimed(tmp_path, record):
    offers = offering(tmp_path / FOLDER, guest(record))
    assert offers.withdraw() == []
    assert claim(tmp_path / FOLDER, record).offers == []


def test_of_a_claim_and_a_withdrawal_exactly_one_succeeds(tmp_path, record):
    for _ in range(30):
        offers = offering(tmp_path / FOLDER, guest(record))
        leadership = Leadership(tmp_path / FOLDER, record)
        thread = threading.Thread(target=leadership.claim, args=([guest(record)],))
        thread.start()
        claimed = offers.withdraw()
        thread.join()
        assert len(claimed) == len(leadership.offers)
        leadership.end({})
        for each in claimed:
            each.close()


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({"key": "another"}, {}),
        ({"pubs": 3}, {"max_pubs": 3}),
        ({"max_pubs": 1}, {}),
        ({"max_shots": 1}, {}),
    ],
)
def test_what_does_not_agree_or_fit_is_left(tmp_path, record, theirs, own):
    offers = offering(tmp_path / FOLDER, guest(record, **theirs))
    assert claim(tmp_path / FOLDER, record, guest(record, **own)).offers == []
    assert offers.withdraw() == []


def test_an_offer_of_another_journal_is_left(tmp_path, record):
    offers = offering(tmp_path / FOLDER, guest(Path("/other/journal/open/AB/ABCD/task.json")))
    assert claim(tmp_path / FOLDER, record).offers == []
    assert offers.withdraw() == []


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1}', "\x00"])
def test_a_file_that_is_no_offer_is_left(tmp_path, record, text):
    offers = offering(tmp_path / FOLDER, guest(record))
    (file,) = (tmp_path / FOLDER).glob("*.offer")
    file.write_text(text)
    assert claim(tmp_path / FOLDER, record).offers == []
    assert offers.withdraw() == []


def test_an_offer_of_a_dead_process_is_removed(tmp_path, record):
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "1-dead.offer").write_text("{}")
    assert claim(folder, record).offers == []
    assert not list(folder.glob("*.offer"))


def test_a_payload_whose_process_has_left_is_no_longer_wanted(tmp_path, record):
    offers = offering(tmp_path / FOLDER, guest(record))
    leadership = claim(tmp_path / FOLDER, record)
    (claimed,) = offers.withdraw()
    claimed.close()
    assert not leadership.offers[0].is_wanted()
    leadership.end({})
    assert claimed.ending() == {}, "nothing is left to wait for"
