"""The registry of vendors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qrmi_workflows.errors import ConfigError, PayloadError
from qrmi_workflows.vendors.registry import find_frontend, vendor_of_type


def test_a_qpu_has_the_front_ends_of_its_vendor():
    assert find_frontend("sampler", qpu="a", resource_type="ibm-quantum-system")
    with pytest.raises(
        PayloadError,
        match=r"has no sampler; must be one of: pulser_backend, pulser_connection. .* type: ibm-",
    ):
        find_frontend("sampler", qpu="F", resource_type="pasqal-cloud")


def test_a_front_end_that_no_vendor_offers_is_refused():
    with pytest.raises(PayloadError, match=r"pulser_connection\. Use one of these\.$"):
        find_frontend("annealer", qpu="F", resource_type="pasqal-cloud")


def test_an_unknown_resource_type_is_refused_with_the_known_types():
    with pytest.raises(
        ConfigError, match=r"unknown resource type 'other'; .* one of: alice-bob-felis, "
    ):
        find_frontend("sampler", qpu="o", resource_type="other")


def test_a_vendor_is_found_by_resource_type():
    assert vendor_of_type("qiskit-runtime-service").name == "ibm"


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("acme:MISSING", "the vendor acme:MISSING of type 'acme-qpu' cannot be loaded"),
        ("acme:ACME", "the vendor acme:ACME has the types other-qpu, but its entry point is named"),
    ],
)
def test_a_vendor_with_a_wrong_entry_point_is_refused(tmp_path: Path, entry_point, reason):
    """The message names the entry point, and there is no traceback."""
    metadata = tmp_path / "acme-1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "acme.py").write_text("class ACME:\n    types = {'other-qpu': None}\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    group = "[qrmi_workflows.vendors]"
    (metadata / "entry_points.txt").write_text(f"{group}\nacme-qpu = {entry_point}\n")
    (tmp_path / "payload.json").write_text("{}")
    argv = [sys.executable, "-m", "qrmi_workflows", "run", "payload.json", "-o", "result.json"]

    done = subprocess.run(
        argv,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
