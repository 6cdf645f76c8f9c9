"""Sequences of CUDA-Q, which QRMI's client takes for Pasqal Cloud beside those of Pulser."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from programs_under_lease import qpu_command, run_under_lease
from qrmi import Payload as QRMIPayload
from qrmi import QrmiError, QuantumResource, ResourceType, TaskStatus

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.payloads import Payload

CUDAQ = {"setup": {"ahs_register": {}}, "hamiltonian": {"drivingFields": []}}
API = "/core-fast/api"
ANSWERS: dict[str, Any] = {
    "/v1/devices": [{"status": "UP", "availability": "ACTIVE"}],
    "/v1/cudaq/job": {"id": "b"},
    "/v2/batches/b": {"status": "DONE", "job_ids": ["j"]},
    "/v2/jobs/j": {"status": "DONE"},
    "/v1/cudaq/job/b": {"status": "DONE", "result": {"counter": {"01": 7}}},
}


class Pasqal(BaseHTTPRequestHandler):
    """The requests of Pasqal Cloud's API that CUDA-Q needs; all others are unknown."""

    asked: list[str]

    def do_GET(self) -> None:
        route = self.path.partition("?")[0].removeprefix(API)
        self.asked.append(route)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"data": ANSWERS.get(route, {})}).encode()
        self.send_response(200 if route in ANSWERS else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def asked() -> list[str]:
    """The routes that the vendor was asked for."""
    return []


@pytest.fixture
def settings(asked: list[str]) -> Iterator[dict[str, str]]:
    """QRMI's settings for a vendor with only these routes."""
    handler = type("Handler", (Pasqal,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "QRMI_PASQAL_CLOUD_BASE_URL": f"http://127.0.0.1:{server.server_port}",
            "QRMI_PASQAL_CLOUD_PROJECT_ID": "project",
            "QRMI_PASQAL_CLOUD_AUTH_TOKEN": "token",
        }
        server.shutdown()


def test_qrmi_fetches_a_result_from_its_own_route_only_with_the_handle_that_started_the_task(
    settings, asked
):
    """Why such sequences are refused: a rerun would ask another route, which may not have it."""
    first, rerun = (
        QuantumResource.from_config("EMU_FREE", ResourceType.PasqalCloud, settings)
        for _ in range(2)
    )
    task = first.task_start(QRMIPayload.PasqalCloud(sequence=json.dumps(CUDAQ), job_runs=7))

    assert first.task_status(task) == rerun.task_status(task) == TaskStatus.Completed
    assert json.loads(first.task_result(task).value) == {"counter": {"01": 7}}
    with pytest.raises(QrmiError, match="404"):
        rerun.task_result(task)
    assert asked[-2:] == ["/v1/cudaq/job/b", "/v1/batches/b/full_results"]


@pytest.fixture
def folder(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a payload, at a site with the vendor's QPU."""
    entry = {"name": "EMU_FREE", "type": "pasqal-cloud", "environment": settings}
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": [entry]}))
    (tmp_path / "cudaq.json").write_text(json.dumps({"sequence": CUDAQ, "job_runs": 7}))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_that_the_refusal_names_runs_the_sequence(folder):
    with pytest.raises(PayloadError) as refusal:
        Payload.from_file("cudaq.json", resource_type="pasqal-cloud")
    command = "task_runner NAME PAYLOAD RESULT"
    assert f"qpu lease exec --qpu NAME -- {command}" in refusal.value.message

    run_under_lease("EMU_FREE", "task_runner", "EMU_FREE", "cudaq.json", "result.json")

    assert json.loads((folder / "result.json").read_text()) == {"counter": {"01": 7}}


def test_qpu_run_refuses_the_sequence_before_anything_is_submitted(folder, asked):
    with pytest.raises(AssertionError, match="is a sequence of CUDA-Q"):
        qpu_command("run", "cudaq.json", "-o", "result.json", "--qpu", "EMU_FREE")
    assert "/v1/cudaq/job" not in asked
