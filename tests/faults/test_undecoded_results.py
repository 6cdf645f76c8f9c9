"""A result is kept before it is understood: what cannot be decoded is not paid for again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from fault_payloads import bell
from qiskit import QuantumCircuit
from qiskit.primitives import DataBin, PrimitiveResult, SamplerPubResult
from qiskit_ibm_runtime.json import RuntimeEncoder

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.cli import main
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import ResultError, UndecodedResultError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.results import result_schema
from qrmi_workflows.vendors.ibm import results


def refuse(program: str, text: str) -> None:
    raise ResultError(f"IBM's {program} result is of a kind that came later.")


def crash(program: str, text: str) -> None:
    raise KeyError("meas")


def hold_an_object(program: str, text: str) -> list[dict[str, object]]:
    return [{"evs": {1, 2}}]


@pytest.fixture(params=[refuse, crash, hold_an_object])
def undecodable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that cannot decode the vendor's results: it says so, crashes, or writes no JSON."""
    monkeypatch.setattr(results, "decode_data", request.param)


def qpu(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in argv])
    return ended.value.code


def qpu_run(payload: Path, output: Path) -> int:
    return qpu("run", payload, "-o", output, "--qpu", "ibm_quick", "--quiet")


def test_it_is_written_whole_and_a_release_that_can_decodes_it(
    undecodable, emulator, counted, matched, fault, payload_file, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "result.json"
    fault("delay", route="GET */jobs/*/results", seconds=0.0)  # counts the requests

    assert qpu_run(payload_file, output) == 1
    assert qpu_run(payload_file, output) == 1, "the same release cannot decode it next time either"

    assert f"also in {output}, in `vendor_result`" in capsys.readouterr().err
    document = json.loads(output.read_text())
    jsonschema.validate(document, result_schema())
    assert document["data"] == []
    assert document["decode_error"]
    (record,) = Journal().records()
    assert record.result.vendor_result == document["vendor_result"]
    with pytest.raises(ResultError, match="was not decoded"):
        QuantumResult.load(output).counts()

    monkeypatch.undo()
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    assert QuantumResult.load(output).counts(), "from the file"
    assert qpu_run(payload_file, output) == 0
    assert json.loads(output.read_text())["data"], "from the journal"
    assert "decode_error" not in json.loads(output.read_text())
    assert counted()["tasks accepted"] == 1
    assert matched() == 3, "asked for once more by each run, in case it was cut short on its way"


@pytest.mark.parametrize("source", ["file", "task"])
def test_a_later_release_decodes_it_from_the_file_or_the_journal(
    undecodable, emulator, counted, payload_file, tmp_path, capsys, monkeypatch, source
):
    output, decoded = tmp_path / "result.json", tmp_path / "decoded.json"
    assert qpu_run(payload_file, output) == 1
    task = json.loads(output.read_text())["task_id"]
    assert f"qpu result decode {task}" in capsys.readouterr().err
    if source == "task":
        output.unlink()  # as Snakemake does
    named = output if source == "file" else task

    assert qpu("result", "decode", named, "-o", decoded) == 1, "the same release cannot"
    assert not decoded.exists()
    monkeypatch.undo()
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    capsys.readouterr()
    assert qpu("result", "decode", named) == 0
    assert json.loads(capsys.readouterr().out)["data"]
    assert qpu("result", "decode", named, "-o", decoded) == 0

    document = json.loads(decoded.read_text())
    jsonschema.validate(document, result_schema())
    assert document["data"][0]["registers"]
    assert "decode_error" not in document
    assert counted()["tasks accepted"] == 1


def test_without_a_decoder_the_vendors_text_is_the_result(
    emulator, matched, fault, payload_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(results, "decode_data", lambda program, text: None)
    output = tmp_path / "result.json"
    fault("delay", route="GET */jobs/*/results", seconds=0.0)  # counts the requests

    assert qpu_run(payload_file, output) == 0, "the task has succeeded"

    assert "has no decoder" in capsys.readouterr().err
    document = json.loads(output.read_text())
    jsonschema.validate(document, result_schema())
    assert "num_bits" in document["vendor_result"]
    with pytest.raises(ResultError, match="has no decoder"):
        QuantumResult.load(output).counts()
    assert matched() == 1


def test_levels_that_the_vendor_sends_are_in_the_file(
    emulator, payload_file, tmp_path, monkeypatch
):
    """The emulator has no levels, so its text is replaced on its way from the client."""
    levels = np.array([[0.1 + 0.2j], [np.inf - 0.1j]])
    sent = PrimitiveResult([SamplerPubResult(DataBin(c=levels))])
    answer = SimpleNamespace(value=json.dumps(sent, cls=RuntimeEncoder))
    monkeypatch.setattr(QRMIResource, "task_result", lambda *_: answer)
    output = tmp_path / "result.json"

    assert qpu_run(payload_file, output) == 0

    document = json.loads(output.read_text(), parse_constant=pytest.fail)
    jsonschema.validate(document, result_schema())
    assert document["data"][0]["registers"]["c"] == {
        "num_bits": 1,
        "levels": {"real": [[0.1], ["Infinity"]], "imag": [[0.2], [-0.1]]},
    }
    assert np.array_equal(QuantumResult.load(output).to_numpy()["c"], levels)


def test_in_python_the_error_carries_it_and_the_journal_shows_it(
    undecodable, emulator, capsys, monkeypatch
):
    with (
        open_lease("ibm_quick", step="s") as lease,
        pytest.raises(UndecodedResultError, match="qpu result decode") as caught,
    ):
        lease.run(bell())

    assert "num_bits" in caught.value.result.vendor_result
    with pytest.raises(SystemExit):
        main(["journal", "show", caught.value.result.task_id])
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == "completed"
    assert shown["result"]["decode_error"] == caught.value.result.decode_error


def test_a_primitives_job_returns_it_if_ibms_own_package_can_decode_it(undecodable, emulator):
    circuit = QuantumCircuit(2)
    circuit.x(0)
    circuit.measure_all()
    with open_lease("ibm_quick", step="s") as lease:
        result = lease.sampler().run([circuit], shots=2).result()

    assert result[0].data.meas.get_counts() == {"00": 1, "11": 1}, "what this QPU always returns"


@pytest.mark.parametrize(
    ("qpu", "route"),
    [("ibm_quick", "GET */jobs/*/results"), ("ibm_system", "GET */s3/*/results_*")],
)
def test_a_text_that_was_cut_short_on_its_way_is_fetched_again(
    emulator, fault, matched, qpu, route
):
    fault("malformed", route=route, count=1)

    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).counts()

    assert matched() == 2
    (record,) = Journal().step("s").records()
    assert record.result.decoded().counts()


def test_a_rerun_fetches_a_text_that_was_cut_short_twice(
    emulator, counted, fault, payload_file, tmp_path, capsys
):
    fault("malformed", route="GET */jobs/*/results", count=2)
    output = tmp_path / "result.json"

    assert qpu_run(payload_file, output) == 1
    assert qpu_run(payload_file, output) == 0

    assert QuantumResult.load(output).counts()
    assert counted()["tasks accepted"] == 1
