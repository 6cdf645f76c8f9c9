"""The app that runs a payload, in its block."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.data_provider.files import File
from parsl.dataflow.dflow import DataFlowKernelLoader
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, QPUExecutor, payload_app, qpus, run_payload
from parsl_ext.payload_app import _run
from qrmi_workflows.errors import PayloadError, ResourceError, UndecodedResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult

RESULT = QuantumResult(
    qpu="ibm_fez",
    type="ibm-quantum-compute-service",
    program="sampler",
    task_id="t1",
    payload_digest="0" * 64,
    submitted="2026-01-01T00:00:00+00:00",
    completed="2026-01-01T00:00:01+00:00",
    data=[],
    vendor_result="{}",
    decode_error="of a kind that came later",
)


class Lease:
    """A lease whose task has a result that cannot be decoded."""

    def run(self, payload: object, *, shots: int | None) -> QuantumResult:
        raise UndecodedResultError("no", RESULT)


def test_a_result_that_cannot_be_decoded_is_in_the_output_file(tmp_path):
    path = tmp_path / "r.json"

    with pytest.raises(UndecodedResultError):
        _run({}, shots=None, outputs=[File(str(path))], lease=Lease())

    assert json.loads(path.read_text())["decode_error"] == "of a kind that came later"


QPUS = {"known": "ibm-quantum-system", "new": "new-server", "spank": None}
OBJECT = {"new_program": {"any": [1]}, "count": 3}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that calls `run_payload`, and returns what the block would get.

    One executor holds a QPU that only its blocks can look up.
    """
    defined = [
        {"name": name, "type": type_, "environment": {}} for name, type_ in QPUS.items() if type_
    ]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": defined}))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    executors: dict[str, Any] = {
        name: QPUExecutor(label=name, provider=LocalProvider(launcher=LeaseLauncher(qpu=name)))
        for name in QPUS
    }
    executors["_parsl_internal"] = None
    kernel = SimpleNamespace(executors=executors, run_id=str(uuid.uuid4()))
    monkeypatch.setattr(DataFlowKernelLoader, "_dfk", kernel)
    monkeypatch.setattr(payload_app, "_payload_app", lambda *_: lambda payload, **_options: payload)
    return run_payload


def test_a_payload_for_a_type_without_a_vendor_is_passed_on_as_by_qpu_run(read, tmp_path):
    """From a file or in memory, with any keys; the executor or the call names the QPU."""
    path = tmp_path / "payload.json"
    path.write_text(json.dumps(OBJECT))

    for payload in (path, File(str(path)), OBJECT, json.dumps(OBJECT)):
        for chosen in ({"executors": "new"}, {"qpu": "new", "executors": ["known", "new"]}):
            early = read(payload, **chosen)
            assert (early.vendor, early.content) == ("verbatim", OBJECT)
    with pytest.raises(PayloadError, match="shots=5 does not apply"):
        read(OBJECT, shots=5, executors="new")


@pytest.mark.parametrize("executors", ["spank", ["known", "new"], "all"])
def test_the_block_decides_where_the_type_is_not_known_before(read, executors, tmp_path):
    path = tmp_path / "payload.json"
    path.write_text(json.dumps(OBJECT))

    for payload in (path, OBJECT, json.dumps(OBJECT)):
        assert read(payload, shots=5, executors=executors) == OBJECT
    for payload in (tmp_path / "missing.json", "{", "OPENQASM 1;"):
        with pytest.raises(PayloadError):
            read(payload, executors=executors)


def test_a_payload_that_no_qpu_of_the_call_takes_is_refused_immediately(read):
    valid = {"program_id": "sampler", "parameters": {"pubs": [["OPENQASM 3.0;"]], "version": 2}}

    assert read(valid, executors="known") == Payload.from_content(valid)
    with pytest.raises(PayloadError, match="do not match any vendor"):
        read(OBJECT, executors="known")


def test_each_qpu_is_looked_up_once_in_a_run(read, monkeypatch):
    """A vendor that does not answer must not delay every call."""
    lookups: list[str] = []

    def silent(name: str) -> None:
        lookups.append(name)
        raise ResourceError("no answer")

    monkeypatch.setattr(qpus, "find_qpu", silent)
    for _ in range(3):
        assert read(OBJECT, executors="known") == OBJECT

    assert lookups == ["known"]
