"""Alice & Bob's payloads and results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.registry import load_vendor

QIR = """define void @main() {
  call void @__quantum__qis__h__body(%Qubit* null)
  call void @__quantum__qis__cx__body(%Qubit* null, %Qubit* inttoptr (i64 4 to %Qubit*))
  call void @__quantum__qis__mz__body(%Qubit* null, %Result* null)
  ret void
}
"""


def content(program: Any = QIR, **params: Any) -> dict[str, Any]:
    return {"human_qir": program, "input_params": {"nbShots": 100, **params}}


def target(qubits: int = 40) -> str:
    """Return a target that has shots, and photons without a default."""
    shots = {"required": True, "default": 1000, "constraints": [{"min": 1, "max": 10**6}]}
    photons = {"required": True, "default": None, "constraints": [{"min": 4, "max": 16}]}
    params = {"nbShots": shots, "averageNbPhotons": photons}
    return json.dumps({"name": "EMU:5Q", "numQubits": qubits, "inputParams": params})


def test_a_payload_is_sent_as_felis_takes_it():
    """The program itself, not a JSON string of it; the parameters as JSON."""
    payload = Payload.from_content(content(averageNbPhotons=4))
    payload.require_fit("ab", target())
    encoded = load_vendor("alice-bob").encode(payload.content)

    assert (payload.vendor, payload.program) == ("alice-bob", "qir")
    assert encoded.kind == "AliceBobFelis"
    assert encoded.fields["human_qir"] == QIR
    assert json.loads(encoded.fields["input_params"]) == {"nbShots": 100, "averageNbPhotons": 4}


def test_a_file_of_qir_alone_is_a_program(tmp_path):
    path = tmp_path / "program.ll"
    path.write_text(QIR)

    assert Payload.from_file(path, shots=7).content == content(nbShots=7)
    with pytest.raises(PayloadError, match=r"program\.ll: a QIR program needs a number of shots"):
        Payload.from_file(path)
    with pytest.raises(PayloadError, match=r"precision=0\.1 does not apply to a QIR program"):
        Payload.from_file(path, shots=7, precision=0.1)
    path.write_bytes(QIR.encode() + b"\xff")
    with pytest.raises(PayloadError, match="not text in UTF-8"):
        Payload.from_file(path, shots=7)


def test_the_shots_can_be_changed():
    assert Payload.from_content(content(), shots=5).content == content(nbShots=5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content("define void @main()"), "human_qir='define void @main.*no quantum operations"),
        (content(averageNbPhotons=3), r"averageNbPhotons=3; must be from 4 to 16 on QPU 'ab'"),
        (content(averageNbPhotons=4, nbShots=10**7), "nbShots=10000000; must be from 1 to"),
        (
            content(averageNbPhotons=4, nbShot=1),
            "unknown parameter 'nbShot'; did you mean 'nbShots'.* 'ab'",
        ),
        (content(), "'averageNbPhotons' is missing, which QPU 'ab' requires"),
    ],
)
def test_programs_that_cannot_run_are_refused(written, message):
    payload = Payload.from_content(written)
    with pytest.raises(PayloadError, match=message):
        payload.require_fit("ab", target())


def test_a_program_must_fit_the_qpu():
    payload = Payload.from_content(content(averageNbPhotons=4))
    payload.require_fit("ab", target(5))
    with pytest.raises(PayloadError, match="uses 5 qubits; must be at most 4 on QPU 'ab'"):
        payload.require_fit("ab", target(4))
    for unknown in (None, "{}", "[", "[]"):
        payload.require_fit("ab", unknown)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content(7), r"\['human_qir'\]: 7 is not of type 'string'"),
        (content(nbShots=0), r"\['nbShots'\]: 0 is less"),
        ({"human_qir": QIR, "input_params": "{}"}, r"\['input_params'\]"),
        ({"human_qir": QIR}, "'input_params' is a required property"),
        ({**content(), "shots": 1}, "unknown key 'shots'; must be one of: human_qir"),
    ],
)
def test_payloads_against_the_schema_are_refused(written, message):
    with pytest.raises(PayloadError, match=message):
        Payload.from_content(written)


def test_a_histogram_is_decoded():
    vendor = load_vendor("alice-bob")
    (decoded,) = vendor.decode("qir", "11,2\n00,3\n")

    assert decoded["registers"] == {"results": {"num_bits": 2, "counts": {"00": 3, "11": 2}}}
    assert vendor.arrays("qir", "10,2\n")[0]["results"].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("text", ["", "{}", "00", "02,1\n", "00,x\n", "memory,count\n00,1\n"])
def test_another_text_is_not_a_result(text):
    with pytest.raises(ResultError, match=r"qir result cannot be decoded.*need not run again"):
        load_vendor("alice-bob").decode("qir", text)


def test_a_target_has_no_calibration_date():
    assert load_vendor("alice-bob").calibrated(target()) is None
    with pytest.raises(ResultError, match="not a valid target of Felis"):
        load_vendor("alice-bob").calibrated("{}")
