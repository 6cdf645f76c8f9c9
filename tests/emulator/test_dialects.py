"""Dialects are found by entry point, so that other packages can add their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from emulator_clients import ask

from qrmi_workflows.emulator import start_emulator
from qrmi_workflows.emulator.dialects import known_types, load_dialect
from qrmi_workflows.errors import EmulatorError

TYPES = (
    "alice-bob-felis",
    "ibm-quantum-compute-service",
    "ibm-quantum-system",
    "iqm-server",
    "pasqal-cloud",
    "pasqal-local",
)
THIRD_PARTY = """
from qrmi_workflows.emulator.dialects.base import Dialect, JSONResponse


class Acme(Dialect):
    type = "acme-cloud"
    simulators = ("null",)
    default_model = "one"

    def models(self):
        return ("one",)

    def new_secrets(self):
        return {"token": "t"}

    def environment(self, qpu, url, secrets):
        return {"QRMI_ACME_ENDPOINT": url, "QRMI_ACME_TOKEN": secrets["token"]}

    def handlers(self):
        return [("GET", "/machines", self._list_machines)]

    def render_refusal(self, refusal):
        return JSONResponse({"problem": refusal.message}, status_code=refusal.status)

    async def _list_machines(self, request):
        return JSONResponse([device.name for device in self.devices])
"""
ENTRY_POINTS = """
[qrmi_workflows.dialects]
acme-cloud = acme:Acme
acme-misnamed = acme:Acme
acme-broken = acme:Missing
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that adds dialects, for child processes."""
    site = tmp_path / "site"
    metadata = site / "acme-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "acme.py").write_text(THIRD_PARTY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")


def test_this_package_has_six_dialects():
    """Each loads by its resource type."""
    assert set(TYPES) <= set(known_types())
    assert [load_dialect(name).type for name in TYPES] == list(TYPES)


def test_an_unknown_type_is_refused_with_the_known_ones():
    """The message names the value and every installed type."""
    with pytest.raises(EmulatorError, match="'nonsense' is unknown; allowed: ") as caught:
        load_dialect("nonsense")
    assert all(name in str(caught.value) for name in TYPES)


def test_listing_the_types_imports_no_dialect():
    """Loading stays lazy: only the dialect in use is imported."""
    code = (
        "import sys; from qrmi_workflows.emulator.dialects import known_types, load_dialect; "
        "known_types(); load_dialect('iqm-server'); "
        "print([name for name in sys.modules if '.dialects.' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ("base", "iqm_server")
    assert done.stdout.strip() == str([f"qrmi_workflows.emulator.dialects.{m}" for m in modules])


def test_another_package_adds_a_dialect(acme, tmp_path):
    """Its QPU is served under its own prefix, with its own error document."""
    with start_emulator(tmp_path / "state", ("acme_1=acme-cloud",)) as emulator:
        assert ask(emulator, "GET", "/acme-cloud/machines") == (200, ["acme_1"])
        status, document = ask(emulator, "GET", "/acme-cloud/nothing")
        assert (status, list(document)) == (404, ["problem"])
        assert "QRMI_ACME_TOKEN" in emulator.config_path.read_text()


@pytest.mark.parametrize(
    ("resource_type", "reason"),
    [
        ("acme-misnamed", "is of type 'acme-cloud'"),
        ("acme-broken", "the dialect acme:Missing of type 'acme-broken' cannot be loaded"),
    ],
)
def test_a_dialect_with_a_wrong_entry_point_is_refused(acme, tmp_path, resource_type, reason):
    """The message names the entry point, and there is no traceback."""
    argv = [sys.executable, "-m", "qrmi_workflows", "emulator", "--dir", str(tmp_path / "state")]
    done = subprocess.run(
        [*argv, "--qpu", f"acme_1={resource_type}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
