"""`qpu result`: results that are kept already."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qrmi_workflows.cli import main
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.results import QuantumResult

SAMPLES = '{"results": [{"data": {"c": {"samples": ["0x1"], "num_bits": 2}}, "metadata": {}}]}'
RESULT = QuantumResult(
    qpu="ibm_fez",
    type="ibm-quantum-compute-service",
    program="sampler",
    task_id="t1",
    payload_digest="0" * 64,
    submitted="2026-01-01T00:00:00+00:00",
    completed="2026-01-01T00:00:01+00:00",
    data=[],
    vendor_result=SAMPLES,
    decode_error="an earlier release could not",
)


def qpu(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in argv])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))


def test_a_file_is_decoded_in_place(tmp_path, capsys):
    path = tmp_path / "r.json"
    RESULT.save(path)

    code, out, err = qpu(capsys, "result", "decode", path, "-o", path)

    assert (code, out, err) == (0, "", f"result of task t1: written to {path}\n")
    document = json.loads(path.read_text())
    assert document["data"] == [{"registers": {"c": {"num_bits": 2, "counts": {"01": 1}}}}]
    assert "decode_error" not in document


def test_a_result_that_was_decoded_wrongly_is_decoded_again(tmp_path, capsys):
    path = tmp_path / "r.json"
    replace(RESULT, data=[{"c": None}], decode_error=None).save(path)

    code, out, _ = qpu(capsys, "result", "decode", path)

    assert code == 0
    assert json.loads(out)["data"][0]["registers"]["c"]["counts"] == {"01": 1}
    assert json.loads(path.read_text())["data"] == [{"c": None}], "only with -o"


def test_what_cannot_be_decoded_still_leaves_the_file_as_it_is(tmp_path, capsys):
    path = tmp_path / "r.json"
    replace(RESULT, vendor_result="{}").save(path)
    before = path.read_bytes()

    code, out, err = qpu(capsys, "result", "decode", path, "-o", path)

    assert (code, out) == (1, "")
    assert "IBM's sampler result cannot be decoded" in err
    assert path.read_bytes() == before


def test_an_unknown_task_or_file_is_refused_with_the_list_to_look_at(capsys):
    code, _, err = qpu(capsys, "result", "decode", "t2")

    assert code == 1
    assert err.startswith("qpu: t2: no such result file, and no such task in the journal. Name ")


def test_a_task_without_a_result_is_refused_with_its_state_and_step(capsys):
    step = Journal().step("qpu run -o /r.json")
    entry, _ = step.claim("f" * 64, qpu="ibm_fez", program="sampler")
    entry.submitted("t3")

    code, _, err = qpu(capsys, "result", "decode", "t3")

    assert code == 1
    assert "its state is submitted. Run its step again" in err
    assert "qpu run -o /r.json" in err
