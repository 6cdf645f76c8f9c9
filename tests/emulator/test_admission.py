"""`qpu site reconcile` asks vendors over HTTP: their states, and their silence."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from emulator_clients import read_resources
from waiting import wait_until

from qrmi_workflows.client.states import Answer
from qrmi_workflows.config.notices import read_notices
from qrmi_workflows.config.site import SitePolicy, load_site_policy
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.site import reconcile as module
from qrmi_workflows.site.notice_board import NoticeBoard
from qrmi_workflows.site.reconcile import Reconciled, reconcile

QPUS = {
    "ab_emu": "alice-bob-felis",
    "ibm_fez": "ibm-quantum-compute-service",
    "ibm_system": "ibm-quantum-system",
    "garnet": "iqm-server",
    "FRESNEL": "pasqal-cloud",
}
EXPECTED = {
    # QRMI says "online" of Alice & Bob's whatever happens, and of a device of Pasqal Cloud that is
    # down for a while (0.26.4).
    "paused": {"ibm_fez": "paused", "ibm_system": "paused", "garnet": "paused"},
    "offline": {
        "ibm_fez": "offline",
        "ibm_system": "offline",
        "garnet": "offline",
        "FRESNEL": "offline",
    },
    "maintenance": {"ibm_fez": "offline", "ibm_system": "offline", "garnet": "paused"},
}


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """One QPU of each vendor."""
    folder = tmp_path_factory.mktemp("vendors")
    with start_emulator(folder, [f"{name}={type_}" for name, type_ in QPUS.items()]) as emulator:
        yield emulator


@pytest.fixture
def site(tmp_path: Path) -> SitePolicy:
    """A site without a Slurm that could be asked, on which nothing depends here."""
    tables = "".join(f"[qpus.{name}]\n" for name in QPUS)
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}/state"\n{tables}')
    return load_site_policy(tmp_path / "site.toml")


@pytest.fixture
def run(site: SitePolicy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reconciled]:
    """Ask the vendors, and change nothing at any scheduler."""

    class NoAdmission:
        def admission(self) -> None:
            return None

    monkeypatch.setattr(module, "scheduler_of", lambda _site: NoAdmission())
    return lambda config, **options: reconcile(site, config, **options)


@pytest.mark.parametrize("availability", EXPECTED)
def test_each_vendors_state_is_followed(
    vendors: Emulator, site: SitePolicy, run: Callable[..., Reconciled], availability: str
) -> None:
    for name in QPUS:
        vendors.control.ask("PATCH", f"/qpus/{name}", {"availability": availability})
    away = run(vendors.config_path)
    found = {name: each.message for name, each in read_notices(site).items()}
    for name in QPUS:
        vendors.control.ask("PATCH", f"/qpus/{name}", {"availability": "online"})
    back = run(vendors.config_path)

    assert all(isinstance(each, Answer) for each in away.answers.values())
    expected = EXPECTED[availability]
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert found[name].startswith(f"the vendor reports that it is {state}")
        if (availability, name) == ("maintenance", "ibm_fez"):  # QRMI passes on QCS's alone
            assert found[name].endswith("(maintenance)")
    assert dict(back.applied.notices) == {}
    assert read_notices(site) == {}


def test_an_account_is_asked_for_the_qpus_that_the_file_does_not_name(
    vendors: Emulator, site: SitePolicy, run: Callable[..., Reconciled], tmp_path: Path
) -> None:
    entry = {**read_resources(vendors)["ibm_fez"], "name": "all", "is_dynamic": True}
    config = tmp_path / "qrmi.json"
    config.write_text(json.dumps({"resources": [entry]}))

    answers = run(config).answers

    assert answers["ibm_fez"] == Answer(state="online", is_operational=True, queue=0)
    assert isinstance(answers["garnet"], str)


def test_a_silent_vendor_does_not_hold_the_others_up_and_is_away_after_a_while(
    vendors: Emulator, site: SitePolicy, run: Callable[..., Reconciled], tmp_path: Path
) -> None:
    entries = read_resources(vendors)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {
            key: address if value.startswith("http") else value
            for key, value in entries["ibm_fez"]["environment"].items()
        }
        entries["ibm_fez"] = {**entries["ibm_fez"], "environment": environment}
        config = tmp_path / "qrmi.json"
        config.write_text(json.dumps({"resources": list(entries.values())}))
        vendors.control.ask("PATCH", "/qpus/garnet", {"availability": "offline"})

        def ask() -> Reconciled | None:
            found = run(config, seconds=1)
            return found if isinstance(found.answers["garnet"], Answer) else None

        first = wait_until(ask, "an answer within 1 s, from a vendor that is not silent")
        after_first = set(read_notices(site))
        board = NoticeBoard(site)
        with board.changed() as known:
            known.seen["ibm_fez"] = replace(known.seen["ibm_fez"], answered=time.time() - 901)
            board.save(known)
        run(config, seconds=1)
        vendors.control.ask("PATCH", "/qpus/garnet", {"availability": "online"})

    assert isinstance(first.answers["ibm_fez"], str)
    assert isinstance(first.answers["garnet"], Answer)
    assert after_first == {"garnet"}
    notices = read_notices(site)
    assert notices.keys() == {"garnet", "ibm_fez"}
    assert notices["ibm_fez"].message == "the vendor has not answered for 900 s"
