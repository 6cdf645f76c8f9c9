"""IQM's payloads and results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.registry import load_vendor

QPU = {"qpu": "garnet", "target": None}


def operation(name: str, *locus: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "locus": list(locus), "args": args}


def request(*instructions: dict[str, Any], shots: Any = 10) -> dict[str, Any]:
    measure = operation("measure", "QB1", "QB2", key="m")
    circuit = {"name": "c", "instructions": [*instructions, measure]}
    return {"circuits": [circuit], "shots": shots, "calibration_set_id": None}


def content(iqmjson: Any, **fields: Any) -> dict[str, Any]:
    return {"iqmjson": iqmjson, "job_type": "circuit", **fields}


def gates() -> str:
    """Return the target of a machine with three qubits in a row."""
    single = [["QB1"], ["QB2"], ["QB3"]]
    loci = {"prx": single, "measure": single, "cz": [["QB1", "QB2"], ["QB2", "QB3"]]}
    described = {name: {"implementations": {"a": {"loci": each}}} for name, each in loci.items()}
    calibration = {"created_timestamp": "2026-01-01T00:00:00Z", "end_timestamp": None}
    return json.dumps(
        {
            "dynamic_quantum_architecture": {"gates": described},
            "calibration_set": calibration,
        }
    )


@pytest.mark.parametrize(
    "written",
    [
        content(request(), use_timeslot=True, tag="night"),
        content(json.dumps(request()), use_timeslot=True, tag="night"),
    ],
)
def test_the_input_is_an_object_or_its_text(written):
    """QRMI's schema says that `iqmjson` is text, and its generator writes an object."""
    payload = Payload.from_content(written)
    payload.require_fit("garnet", gates())
    encoded = load_vendor("iqm").encode(payload.content)

    assert (payload.vendor, payload.program, encoded.kind) == ("iqm", "circuit", "IQMServer")
    assert json.loads(encoded.fields["iqmjson"]) == request()
    assert encoded.fields["use_timeslot"] is True
    assert encoded.fields["tag"] == "night"


def test_a_time_slot_and_a_tag_are_optional():
    """As in QRMI's schema, and null as its generator writes the tag."""
    vendor = load_vendor("iqm")
    for written in (content(request()), content(request(), tag=None, use_timeslot=None)):
        fields = vendor.encode(Payload.from_content(written).content).fields
        assert (fields["use_timeslot"], fields["tag"]) == (False, None)


def test_the_jobs_of_other_kinds_are_passed_on():
    """Their input is IQM's own, so it is not checked; they have no shots, and no decoder."""
    vendor = load_vendor("iqm")
    for kind in ("run", "sweep"):
        payload = Payload.from_content({"iqmjson": {"any": 1}, "job_type": kind})
        payload.require_fit("garnet", gates())
        assert vendor.encode(payload.content).fields["job_type"] == kind
        assert vendor.decode(kind, '{"measurements": null, "measurement_counts": null}') is None
        with pytest.raises(PayloadError, match=r"shots=5: only a payload .* 'circuit' has shots"):
            payload.with_shots(5)


def test_the_shots_can_be_changed():
    for written in (request(), json.dumps(request())):
        changed = Payload.from_content(content(written), shots=77)
        assert changed.content["iqmjson"]["shots"] == 77


def test_a_file_of_circuits_alone_is_a_program(tmp_path):
    """It is what iqm-client sends, and what QRMI's generator writes beside its payload."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request()))

    assert Payload.from_file(path).content["iqmjson"] == request()
    assert Payload.from_file(path, shots=5).content["iqmjson"]["shots"] == 5
    with pytest.raises(PayloadError, match=r"precision=0\.1 does not apply to IQM's circuits"):
        Payload.from_file(path, precision=0.1)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content("{"), "iqmjson: not valid JSON"),
        (content("[1]"), "iqmjson: has type list; must be an object"),
        (content({**request(), "circuits": []}), r"\['circuits'\]=\[\]: must be a list of one"),
        (content(request(shots=0)), r"\['shots'\]=0: must be a positive integer"),
        (content(request(shots=True)), r"\['shots'\]=True: must be a positive integer"),
        (content({"circuits": [{}], "shots": 1}), r"\['circuits'\]\[0\]: .* `instructions`"),
        (
            content({"circuits": [{"instructions": []}], "shots": 1}),
            r"\['circuits'\]\[0\]: measures nothing",
        ),
        (content(request({"locus": ["QB1"]})), r"\['instructions'\]\[0\]: .* with a `name`"),
        (
            content(request(operation("cz", "QB1", "QB3"))),
            r"QPU 'garnet' has no 'cz' on QB1-QB3; must be on one of: QB1-QB2, QB2-QB3",
        ),
        (content(request(operation("prx", "QB9", angle=1, phase=0))), "no 'prx' on QB9"),
    ],
)
def test_circuits_that_cannot_run_are_refused(written, message):
    payload = Payload.from_content(written)
    with pytest.raises(PayloadError, match=message):
        payload.require_fit("garnet", gates())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content(request(), job_type="circuits"), "'circuits' is not one of"),
        (content(request(), tag="x" * 51), r"\['tag'\]"),
        (content(request(), use_timeslot="yes"), r"\['use_timeslot'\]"),
        (
            content(request(), use_timeslots=True),
            "unknown key 'use_timeslots'; did you mean 'use_timeslot'",
        ),
        ({"iqmjson": {}}, "'job_type' is a required property"),
    ],
)
def test_payloads_against_the_schema_are_refused(written, message):
    with pytest.raises(PayloadError, match=message):
        Payload.from_content(written)


def test_gates_run_in_either_direction_and_unknown_ones_are_the_vendors():
    written = content(request(operation("cz", "QB2", "QB1"), operation("move", "QB1", "CR")))
    Payload.from_content(written).require_fit("garnet", gates())
    cz = content(request(operation("cz", "QB1", "QB3")))
    for unknown in ("{}", "[]", None):
        Payload.from_content(cz).require_fit("garnet", unknown)


def test_a_key_that_is_not_qiskits_is_a_register():
    """Its bits are in the order of its qubits."""
    text = json.dumps({"measurements": [{"m": [[0, 1], [0, 1], [1, 1]]}, {"a": [[1]]}]})
    vendor = load_vendor("iqm")

    assert vendor.decode("circuit", text) == [
        {"registers": {"m": {"num_bits": 2, "counts": {"01": 2, "11": 1}}}},
        {"registers": {"a": {"num_bits": 1, "counts": {"1": 1}}}},
    ]
    assert vendor.arrays("circuit", text)[0]["m"].tolist() == [[0, 1], [0, 1], [1, 1]]


def test_qiskits_registers_are_put_together():
    """Their names and bit strings are Qiskit's; a bit without a measurement is 0."""
    measured = {
        "my_c_3_0_0": [[1.0], [0.0]],
        "my_c_3_0_2": [[0.0], [1.0]],
        "d_1_1_0": [[1.0], [1.0]],
    }
    registers = load_vendor("iqm").decode("circuit", json.dumps({"measurements": [measured]}))

    assert registers == [
        {
            "registers": {
                "my_c": {"num_bits": 3, "counts": {"001": 1, "100": 1}},
                "d": {"num_bits": 1, "counts": {"1": 2}},
            }
        }
    ]


def test_counts_without_shots_are_one_register():
    """A server may have the artifact of counts alone."""
    counts = {"measurement_keys": ["a", "b"], "counts": {"01": 2, "11": 1}}
    text = json.dumps({"measurements": None, "measurement_counts": [counts]})

    (decoded,) = load_vendor("iqm").decode("circuit", text)

    assert decoded["registers"] == {"a_b": {"num_bits": 2, "counts": {"01": 2, "11": 1}}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"measurements": null, "measurement_counts": null}',
        '{"measurements": [{"m": 3}]}',
        '{"measurements": [{"m_2_0_5": [[1]]}]}',
    ],
)
def test_another_text_is_not_a_result(text):
    with pytest.raises(ResultError, match=r"IQM's result cannot be decoded.*need not run again"):
        load_vendor("iqm").decode("circuit", text)


def test_the_calibration_date_is_the_sets():
    vendor = load_vendor("iqm")
    assert vendor.calibrated(gates()) == "2026-01-01T00:00:00Z"
    for text in ("[]", "{}", ""):
        with pytest.raises(ResultError, match="not a valid target of an IQM QPU"):
            vendor.calibrated(text)
