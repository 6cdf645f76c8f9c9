"""Choosing a QPU over HTTP: what the vendors tell, whatever servers they have, and what changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from servers import servers, to_toml

from qrmi_workflows import open_lease
from qrmi_workflows.choice import gather, recent
from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.choose import choose
from qrmi_workflows.choice.survey import survey
from qrmi_workflows.config.constraints import parse_qpus
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import LeaseError, RequestError
from qrmi_workflows.results import result_schema

QCS = "ibm-quantum-compute-service"
COUNTING = (QCS, "iqm-server")
HERE = Asker(for_job=False)


def queued(number: int, server: dict[str, bool]) -> str:
    """Return the settings of two QPUs of each vendor, one of which has a queue."""
    return "".join(
        f"""
[qpus.{"ibm" if type_ == QCS else "iqm"}{number}_{name}]
type = "{type_}"
simulator = "null"
execution_seconds = 0.5
queue_seconds = {seconds}
server = {to_toml(server)}
"""
        for type_ in COUNTING
        for name, seconds in (("free", 0), ("busy", 30))
    )


SERVERS = list(enumerate(servers(*COUNTING, queue=True)))
CONFIG = (
    "".join(queued(number, server) for number, server in SERVERS)
    + """
[qpus.ibm_system]
type = "ibm-quantum-system"
model = "kingston"
[qpus.ibm_small]
type = "ibm-quantum-compute-service"
model = "torino"
simulator = "null"
[qpus.FRESNEL]
type = "pasqal-cloud"
[qpus.ab_emu]
type = "alice-bob-felis"
"""
)


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("vendors")
    (folder / "qpus.toml").write_text(CONFIG)
    with start_emulator(folder / "emulator", config=folder / "qpus.toml") as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def here(vendors: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know the QPUs, and nothing of them yet."""
    for name in ("FRESH_SECONDS", "_STATE_SECONDS", "_TARGET_SECONDS"):
        monkeypatch.setattr(gather, name, 300.0)  # a loaded machine needs time for many QPUs
    monkeypatch.setenv("QPU_CONFIG", str(vendors.config_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_CHOICE_WAIT", "0")
    for name in ("QPU_SITE", "QPU_STEP"):
        monkeypatch.delenv(name, raising=False)


def set_state(vendors: Emulator, name: str, state: str) -> None:
    """Change what a QPU can be used for."""
    vendors.control.ask("PATCH", f"/qpus/{name}", {"availability": state})


def test_every_vendor_tells_how_many_qubits_its_qpus_have_and_what_they_do() -> None:
    (constraint,) = parse_qpus(None, min_qubits=1)
    found = {each.name: each for each in survey(constraint, HERE).ranked}

    assert all(each.verdict.fits for each in found.values()), found
    known = {
        name: (each.facts.capabilities.qubits, each.facts.capabilities.gates)
        for name, each in found.items()
        if each.facts is not None
    }
    assert known["ibm_system"][0] == 156
    assert known["ibm_system"][1] >= {"cz", "sx"}
    assert known["iqm0_free"] == (20, {"cz", "measure", "prx"})
    assert known["FRESNEL"] == (80, {"rydberg_global"})
    assert known["ab_emu"][0] == 40
    assert known["ab_emu"][1] >= {"cx", "mz"}


@pytest.mark.parametrize(("number", "server"), SERVERS)
@pytest.mark.parametrize("vendor", ["ibm", "iqm"])
def test_the_qpu_with_the_shorter_queue_is_chosen_if_the_vendor_tells(
    vendor: str, number: int, server: dict[str, bool]
) -> None:
    """If it counts only this user's tasks, the QPUs are equal, and the choices are spread."""
    chosen = Counter(
        choose(parse_qpus(f"{vendor}{number}_*"), HERE)[0].qpu.rpartition("_")[2] for _ in range(10)
    )
    expected = {"free": 10} if server.get("counts_others", True) else {"free": 5, "busy": 5}
    assert chosen == expected


def test_a_result_says_why_its_qpu_was_chosen(tmp_path: Path) -> None:
    """A process that adopts the lease knows it, too; a QPU that was named was not chosen."""
    bell = Path(__file__).parents[2] / "examples" / "bell" / "bell.json"
    qpu = (sys.executable, "-m", "qrmi_workflows")
    inner = (*qpu, "run", str(bell), "-q", "-o", "chosen.json", "--qpu", "ibm0_free")
    for argv in (
        (*qpu, "lease", "exec", "--qpu", "ibm0_fr*|nowhere", "--", "env", *inner),
        (*qpu, "run", str(bell), "-q", "-o", "named.json", "--qpu", "ibm0_free"),
    ):
        subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path, timeout=60)

    chosen, named = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("chosen", "named"))
    assert chosen["chosen"] == "ibm0_fr*|nowhere: no other fits"
    jsonschema.validate(chosen, result_schema())
    assert "chosen" not in named


@pytest.mark.parametrize("named", ["--qpu", "QPU_NAME"])
def test_a_task_runs_on_a_qpu_that_it_fits(tmp_path: Path, named: str) -> None:
    """It uses a qubit that the smaller QPU does not have, nor any of another vendor's."""
    program = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $150; c[0] = measure $150;'
    parameters = {"pubs": [[program, None, 10]], "version": 2, "support_qiskit": True}
    payload = {"program_id": "sampler", "parameters": parameters}
    (tmp_path / "wide.json").write_text(json.dumps(payload))

    def run(qpu: str) -> subprocess.CompletedProcess[str]:
        options = (named, qpu) if named == "--qpu" else ()
        environ = {} if options else {named: qpu}
        return subprocess.run(
            [sys.executable, "-m", "qrmi_workflows", "run", "wide.json", "-o", "r.json", *options],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    for _ in range(3):  # one of the first two would be the other one by chance
        done = run("ibm_small|ibm0_free|FRESNEL")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "r.json").read_text())["qpu"] == "ibm0_free"
        (tmp_path / "r.json").unlink()
    refused = run("ibm_small|ibm_smal?")
    assert refused.returncode == 2
    assert "uses qubit 150; must be 0 to 132 on QPU 'ibm_small'" in refused.stderr


@pytest.mark.parametrize("name", ["ibm0_free", "iqm0_free", "ibm_system", "FRESNEL"])
def test_a_qpu_that_goes_offline_after_the_vendor_was_asked_is_not_used(
    vendors: Emulator, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The vendors grant leases of it all the same; the answer in the cache says that it is online.

    Alice & Bob's is not among them: QRMI says "online" of it whatever happens (0.26.4).
    """
    request = f"{name}|ab_emu"
    asked = parse_qpus(request)[0]
    survey(asked, HERE)
    time.sleep(0.6)  # what was asked in the last half second is not asked again
    set_state(vendors, name, "offline")
    try:
        for _ in range(3):  # one of the first two would be the other one by chance
            with open_lease(request) as lease:
                assert lease.qpu == "ab_emu"
    finally:
        set_state(vendors, name, "online")
    assert f"QPU {name!r} has gone since it was chosen: " in caplog.text


def test_a_qpu_that_refuses_the_lease_is_replaced(
    vendors: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state is online, before and after."""
    rule = {"kind": "status", "route": "POST */sessions", "status": 400}
    vendors.control.ask("POST", "/faults", rule)
    try:
        for _ in range(3):
            with open_lease(
                "ibm0_free|ibm0_busy|ab_emu", where="queue is None or queue < 9"
            ) as lease:
                assert lease.qpu == "ab_emu"
        with pytest.raises(LeaseError, match="'ibm0_free' could not be acquired"):
            open_lease("ibm0_free|ibm_nowhere", where="queue < 5")
    finally:
        vendors.control.ask("DELETE", "/faults")
    assert "Chose ab_emu instead" in caplog.text


def test_heads_that_choose_at_the_same_time_do_not_all_choose_the_same(
    vendors: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a loaded machine, too, each waits for the one before, and the vendors are asked once.
    monkeypatch.setattr(recent, "_LOCK_SECONDS", 60.0)
    survey(parse_qpus("ibm0_free|ibm_system")[0], HERE)
    chosen: Counter[str] = Counter()
    together = threading.Barrier(8)

    def head(number: int) -> None:
        together.wait()
        asker = Asker(for_job=False, key=f"head {number}")
        chosen[choose(parse_qpus("ibm0_free|ibm_system"), asker)[0].qpu] += 1

    threads = [threading.Thread(target=head, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen == {"ibm0_free": 4, "ibm_system": 4}


def test_a_vendor_that_is_silent_is_not_waited_for(
    vendors: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(parse_qpus("ibm0_busy")[0], HERE)  # so that only the silent vendor is asked in a hurry
    monkeypatch.setattr(gather, "_STATE_SECONDS", 0.5)
    rule = {"kind": "hang", "route": "GET */iqm-server/*"}
    vendors.control.ask("POST", "/faults", rule)
    try:
        for _ in range(2):
            (choice,) = choose(parse_qpus("iqm0_free|ibm0_busy"), HERE)
            assert choice.qpu == "ibm0_busy"
            assert "within 0.5 s" in choice.rejected["iqm0_free"]
    finally:
        vendors.control.ask("DELETE", "/faults")


def test_the_qpus_of_an_account_are_candidates(vendors: Emulator, tmp_path: Path) -> None:
    document = json.loads(vendors.config_path.read_text())
    entry = next(each for each in document["resources"] if each["name"] == "ibm0_free")
    config = tmp_path / "qrmi.json"
    accounts = [{**entry, "name": "all", "is_dynamic": True}]
    config.write_text(json.dumps({"resources": accounts}))
    asker = Asker(for_job=False, config=config)

    (choice,) = choose(parse_qpus("ibm0_*", min_qubits=100), asker)

    assert choice.qpu == "ibm0_free"
    assert choice.rejected["ibm0_busy"].endswith("tasks and jobs ahead")


def test_an_account_that_cannot_be_listed_is_said_to_be_one(
    vendors: Emulator, tmp_path: Path
) -> None:
    document = json.loads(vendors.config_path.read_text())
    entry = next(each for each in document["resources"] if each["name"] == "FRESNEL")
    config = tmp_path / "qrmi.json"
    config.write_text(json.dumps({"resources": [{**entry, "name": "all", "is_dynamic": True}]}))

    with pytest.raises(RequestError, match="'all': QRMI cannot list the QPUs of type 'pasqal-cl"):
        choose(parse_qpus("*"), Asker(for_job=False, config=config))
