"""Invalid input is refused before anything is acquired or sent."""

import json
import os
import subprocess
import sys

import pytest

from qrmi_workflows.errors import PayloadError

pytestmark = pytest.mark.any_server


def run_cli(*argv: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", *argv],
        capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "not-json",
        "foreign",
        "unknown-qpu",
        "absent",
        "no-folder",
        "no-config",
        "bad-config",
        "shots",
    ],
)
def test_invalid_input_is_refused_before_anything_is_acquired(
    emulator, counted, payload_file, tmp_path, case
):
    output, qpu, environ, options = tmp_path / "r.json", "ibm_quick", dict(os.environ), []
    if case == "not-json":
        payload_file.write_text("{")
    elif case == "foreign":
        payload_file.write_text(json.dumps({"sequence": {"register": []}, "job_runs": 1}))
    elif case == "unknown-qpu":
        qpu = "ibm_nowhere"
    elif case == "absent":
        payload_file.unlink()
    elif case == "no-folder":
        output = tmp_path / "nowhere" / "r.json"
    elif case == "no-config":
        environ["QPU_CONFIG"] = str(tmp_path / "absent.json")
    elif case == "bad-config":
        environ["QPU_CONFIG"] = str(payload_file)
    elif case == "shots":
        options = ["--shots", "0"]

    argv = ("run", str(payload_file), "-o", str(output), "--qpu", qpu, *options)
    done = run_cli(*argv, env=environ)

    assert done.returncode == 2
    assert done.stderr.startswith("qpu: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert counted()["sessions opened"] == 0


def test_a_payload_for_another_vendor_never_reaches_the_vendor(quick, counted):
    with pytest.raises(PayloadError, match="the type must be one of: pasqal-cloud"):
        quick.run({"sequence": {"register": []}, "job_runs": 1})
    assert counted()["tasks accepted"] == 0
