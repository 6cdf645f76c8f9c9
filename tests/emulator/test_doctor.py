"""`qpu doctor` asks vendors over HTTP, in parallel and bounded in time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from emulator_clients import read_resources

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.findings import Severity
from qrmi_workflows.config.qpus import load_dynamic, load_qpus
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.site import doctor_qpus
from qrmi_workflows.site.doctor_qpus import check_clocks, check_reachability
from qrmi_workflows.site.reading import SiteReading

Reading = Callable[..., SiteReading]


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    """Write a qrmi_config.json with these entries, and read it."""

    def read(*entries: dict[str, Any]) -> SiteReading:
        path = tmp_path / "qrmi_config.json"
        path.write_text(json.dumps({"resources": list(entries)}))
        return SiteReading(
            config_path=path, definitions=load_qpus(path), accounts=load_dynamic(path)
        )

    return read


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def with_address(entry: dict[str, Any], name: str, address: str) -> dict[str, Any]:
    """Return a definition whose addresses are another server's."""
    environment = {
        key: address if value.startswith("http") else value
        for key, value in entry["environment"].items()
    }
    return {**entry, "name": name, "environment": environment}


def test_a_vendor_that_answers_tells_the_qpus_state(emulator: Emulator, reading: Reading) -> None:
    entries = read_resources(emulator)

    found = list(check_reachability(reading(entries["ibm_fez"], entries["FRESNEL"])))

    assert [(each.severity, each.problem) for each in found] == [
        (Severity.OK, "QPU 'ibm_fez': online"),
        (Severity.OK, "QPU 'FRESNEL': online"),
    ]


def test_an_account_is_asked_for_its_qpus(emulator: Emulator, reading: Reading) -> None:
    entries = read_resources(emulator)
    ibm = {**entries["ibm_fez"], "name": "all", "is_dynamic": True}
    pasqal = {**entries["EMU_FREE"], "name": "clouds", "is_dynamic": True}

    one, other = check_reachability(reading(ibm, pasqal))

    assert one.severity is Severity.OK
    assert "ibm_fez" in one.problem
    assert other.severity is Severity.ERROR
    assert "QRMI cannot list the QPUs" in other.problem


def test_all_vendors_are_asked_at_the_same_time(
    emulator: Emulator, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers only once all of them have been asked."""
    together = threading.Barrier(3, timeout=30)
    monkeypatch.setattr(doctor_qpus, "_ask_state", lambda _: f"{together.wait()}")
    fez = read_resources(emulator)["ibm_fez"]

    found = list(check_reachability(reading(*({**fez, "name": name} for name in "abc"))))

    assert [each.severity for each in found] == [Severity.OK] * 3


def test_vendors_that_do_not_answer_are_errors(
    emulator: Emulator, reading: Reading, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fez = read_resources(emulator)["ibm_fez"]

    def hurry(name: str, *of: Any, deadlines: dict[str, float]) -> QRMIResource:
        limits = deadlines if name == "ibm_fez" else {"status": 1.5}
        return QRMIResource(name, *of, deadlines=limits)

    monkeypatch.setattr(doctor_qpus, "QRMIResource", hurry)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    bad = [with_address(fez, "silent", silent), with_address(fez, "closed", closed)]

    found = list(check_reachability(reading(fez, *bad)))

    by_name = {each.problem.split("'")[1]: each for each in found}
    assert by_name["ibm_fez"].severity is Severity.OK
    for name in ("silent", "closed"):
        assert by_name[name].severity is Severity.ERROR
        assert "qrmi_config.json, and the way to the vendor" in by_name[name].remedy


def test_a_refused_credential_is_an_error_that_does_not_show_it(
    emulator: Emulator, reading: Reading
) -> None:
    entry = read_resources(emulator)["ibm_fez"]
    environment = {
        name: "planted-secret" if "KEY" in name else value
        for name, value in entry["environment"].items()
    }

    (found,) = check_reachability(reading({**entry, "environment": environment}))

    assert found.severity is Severity.ERROR
    assert "planted-secret" not in str(found)


@pytest.fixture
def clock() -> Iterator[Callable[[float], str]]:
    """Start servers whose Date header differs from this host's clock."""
    servers: list[HTTPServer] = []

    def start(ahead: float) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(404)
                self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("ahead", "message"),
    [(0.0, None), (600.0, "s ahead of this host's"), (-600.0, "s behind this host's")],
)
def test_a_vendors_clock_is_compared_by_any_of_its_answers(
    emulator: Emulator,
    reading: Reading,
    clock: Callable[[float], str],
    ahead: float,
    message: str | None,
) -> None:
    entry = with_address(read_resources(emulator)["ibm_fez"], "a", f"{clock(ahead)}/v1/path")

    (found,) = check_clocks(reading(entry))

    assert found.severity is (Severity.OK if message is None else Severity.ERROR)
    assert message is None or message in found.problem


def test_the_emulator_tells_its_time_and_a_silent_server_none(
    emulator: Emulator, reading: Reading, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hurry(request: Request, *, timeout: float) -> Any:
        limit = 0.5 if request.full_url == f"{silent}/" else timeout
        return urlopen(request, timeout=limit)  # noqa: S310 - only our own http servers

    monkeypatch.setattr(doctor_qpus, "urlopen", hurry)
    fez = read_resources(emulator)["ibm_fez"]

    found = list(check_clocks(reading(fez, with_address(fez, "b", silent))))

    assert [each.severity for each in found] == [Severity.OK]
