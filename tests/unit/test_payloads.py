"""Payloads, and the files that they are read from."""

import json
import pickle

import numpy as np
import pulser
import pytest
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.circuit import Parameter

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.payloads import MAX_BYTES, Payload, to_payload

SAMPLER = {
    "program_id": "sampler",
    "parameters": {"pubs": [["OPENQASM 3.0; …", None, 100]], "version": 2, "shots": 100},
}
QASM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
PARAMETRISED = 'OPENQASM 3.0; include "stdgates.inc"; input float a; rx(a) $0;'
SEQUENCE = {"sequence": {"register": [], "version": "1"}, "job_runs": 10}


def test_the_keys_identify_the_vendor():
    assert Payload.from_content(SAMPLER).vendor == "ibm"
    assert Payload.from_content(SEQUENCE).vendor == "pasqal"
    assert Payload.from_content(SAMPLER).program == "sampler"
    assert Payload.from_content(SEQUENCE).program == "pulser"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "has type list, which is not a payload"),
        (
            '{"sequence": {"a": 1, "a": 2}}',
            "not valid JSON: duplicate key 'a'. .* Correct the file",
        ),
        ('{"sequence": {"a": -Infinity}}', "not valid JSON: -Infinity is not a JSON number"),
        (
            "{}",
            r"keys \(none\) do not match any vendor's payload. Must be, for .*; for ibm, ",
        ),
        ('{"circuit": 1}', r"the keys \('circuit'\)"),
        ('{"program_id": "sampler"}', "'parameters' is a required property"),
        (
            '{"program_id": "sampling", "parameters": {"pubs": []}}',
            r"\['program_id'\]: 'sampling' is not one of \['sampler', 'estimator', 'executor', ",
        ),
        ('{"program_id": "sampler", "parameters": {"pubs": []}}', r"\['pubs'\]"),
        ('{"sequence": {"register": []}, "job_runs": 0}', r"\['job_runs'\]: 0 is less"),
        ('{"sequence": "{}", "job_runs": 1}', r"\['sequence'\]"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    path = tmp_path / "payload.json"
    path.write_text(text)

    with pytest.raises(PayloadError, match=message) as caught:
        Payload.from_file(path)

    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PayloadError, match=r"absent\.json: cannot read the payload: No such file"):
        Payload.from_file(tmp_path / "absent.json")


def test_a_payload_for_another_vendor_is_refused():
    with pytest.raises(PayloadError, match="type must be one of: pasqal-cloud, pasqal-local"):
        Payload.from_content(SEQUENCE).require_type("ibm_fez", "ibm-quantum-compute-service")


def test_the_digest_depends_on_the_content_but_not_on_the_order_of_keys():
    again = json.loads(json.dumps(SAMPLER))
    again["parameters"] = dict(reversed(again["parameters"].items()))
    more = Payload.from_content(SAMPLER).with_shots(101)

    assert Payload.from_content(again).digest == Payload.from_content(SAMPLER).digest
    assert more.digest != Payload.from_content(SAMPLER).digest


def test_with_shots_changes_every_pub_of_a_copy():
    changed = Payload.from_content(SAMPLER).with_shots(7)

    assert changed.content["parameters"]["pubs"] == [["OPENQASM 3.0; …", None, 7]]
    assert changed.content["parameters"]["shots"] == 7
    assert SAMPLER["parameters"]["shots"] == 100
    assert Payload.from_content(SEQUENCE).with_shots(7).content["job_runs"] == 7


def test_an_estimator_takes_no_shots():
    estimator = {"program_id": "estimator", "parameters": {"pubs": [["q", "Z"]]}}

    with pytest.raises(PayloadError, match="precision, not shots"):
        Payload.from_content(estimator).with_shots(7)
    with pytest.raises(PayloadError, match="must be a positive integer"):
        Payload.from_content(SAMPLER).with_shots(0)


def test_a_malformed_pub_is_refused_with_its_position():
    for program, pub, message in (
        ("sampler", ["q", None, 0], r"\['pubs'\]\[0\]\[2\]: 0 is less than the minimum of 1"),
        ("sampler", ["q", None, -1], r"\[2\]: -1 is less"),
        ("sampler", ["q", None, 1.5], r"\[2\]: 1.5 is not of type 'integer'"),
        ("sampler", ["q", None, 1, 2], "too long|at most 3"),
        ("sampler", [], "non-empty"),
        ("sampler", [7], r"\[0\]: 7 is not of type"),
        ("sampler", "", "non-empty"),
        ("estimator", ["q"], "too short"),
        ("estimator", ["q", "Z", [], -0.1], r"\[3\]: -0.1 is less"),
    ):
        content = {"program_id": program, "parameters": {"pubs": [pub], "version": 2}}
        with pytest.raises(PayloadError, match=message):
            Payload.from_content(content)


@pytest.mark.parametrize(
    "observables", [[], {}, 7, None, "ZQ", {"Z": "a"}, {"Z": True}, ["Z", [{"A": 1.0}]]]
)
def test_malformed_observables_are_refused(observables):
    def estimated(observables: object) -> Payload:
        pubs = [['OPENQASM 3.0; include "stdgates.inc"; x $0;', observables]]
        return Payload.from_content({"program_id": "estimator", "parameters": {"pubs": pubs}})

    with pytest.raises(
        PayloadError, match=r"observables of PUB 0: .* is not an observable; must be"
    ):
        estimated(observables).require_fit("ibm_fez", None)
    for valid in ("Z0", {"ZZ": 1, "X+": -0.5}, [["Z"], [{"X": 1.0}]], {"__type__": "ndarray"}):
        estimated(valid).require_fit("ibm_fez", None)


@pytest.mark.parametrize("shots", [0, -3, 1.5, True, "7"])
def test_shots_must_be_a_positive_integer(shots, tmp_path):
    (tmp_path / "c.qasm").write_text("OPENQASM 3.0;")
    message = rf"shots={shots!r}: must be a positive integer"
    with pytest.raises(PayloadError, match=message):
        Payload.from_content(SAMPLER).with_shots(shots)
    with pytest.raises(PayloadError, match=message):
        Payload.from_file(tmp_path / "c.qasm", shots=shots)


@pytest.mark.parametrize("seven", [np.int64(7), np.uint8(7), np.array(7)], ids=repr)
def test_numbers_may_be_numpys(tmp_path, seven):
    """At every place where a number of shots or runs is taken, and in every payload's content."""
    (tmp_path / "c.qasm").write_text(QASM)
    sequence, circuit = SEQUENCE["sequence"], QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    payloads = [
        Payload.from_content(SEQUENCE).with_shots(seven),
        Payload.from_content({"sequence": sequence, "job_runs": seven}),
        Payload.from_content(SEQUENCE, shots=seven),
        to_payload(SEQUENCE, shots=seven),
    ]
    assert [payload.content["job_runs"] for payload in payloads] == [7] * 4
    sampled = [
        Payload.from_file(tmp_path / "c.qasm", shots=seven),
        Payload.from_content(circuit, shots=seven),
        Payload.from_content(
            {"program_id": "sampler", "parameters": {"pubs": [(QASM, np.zeros((2, 0)), seven)]}}
        ),
        Payload.from_content(SAMPLER, shots=seven),
    ]
    assert [payload.content["parameters"]["pubs"][0][2] for payload in sampled] == [7] * 4
    for payload in [*payloads, *sampled]:
        json.dumps(payload.content)


def test_parameter_values_and_observables_may_be_numpys():
    values, coefficient = np.array([[0.5], [1.5]]), np.float64(0.25)
    payload = Payload.from_content(
        PARAMETRISED,
        observables={"Z": coefficient},
        parameter_values=values,
        precision=np.float32(0.5),
    )

    _, observables, sent, precision = payload.content["parameters"]["pubs"][0]
    assert (observables, sent, precision) == ({"Z": 0.25}, [[0.5], [1.5]], 0.5)
    assert payload.digest == payload.from_content(payload.content).digest


def test_values_that_json_cannot_represent_are_refused():
    for value in (float("nan"), float("inf"), np.array([np.nan]), 1j, {1}):
        content = {"program_id": "sampler", "parameters": {"pubs": [["q", [value]]]}}
        with pytest.raises(PayloadError, match="not valid JSON"):
            Payload.from_content(content)


def test_a_payload_of_100_mb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(
        PayloadError, match=r"large.json: size 100.0 MB; must be at most 50 MB. Split"
    ):
        Payload.from_file(path)
    content = {"program_id": "sampler", "parameters": {"pubs": ["x" * MAX_BYTES]}}
    with pytest.raises(PayloadError, match=r"the payload: size 50\.0 MB"):
        Payload.from_content(content)


def test_a_payload_survives_pickling_with_its_digest():
    payload = Payload.from_content(SAMPLER)
    again = pickle.loads(pickle.dumps(payload))
    assert (again, again.digest) == (payload, payload.digest)


def test_an_openqasm_file_becomes_a_payload(tmp_path):
    text = "// mine\nOPENQASM 3.0;\nbit c; x $0; c = measure $0;"
    (tmp_path / "c.qasm").write_text(text)

    sampled = Payload.from_file(tmp_path / "c.qasm", shots=20)
    bare = Payload.from_file(tmp_path / "c.qasm")
    values = [[0.1], [0.2]]
    estimated = Payload.from_file(
        tmp_path / "c.qasm", observables={"ZZ": 0.5}, parameter_values=values, precision=0.1
    )

    assert sampled.content["parameters"]["pubs"] == [[text, None, 20]]
    assert bare.content["parameters"]["pubs"] == [[text]]
    assert (estimated.program, sampled.program) == ("estimator", "sampler")
    assert estimated.content["parameters"]["pubs"] == [[text, {"ZZ": 0.5}, values, 0.1]]


def test_settings_that_do_not_apply_to_a_file_are_refused(tmp_path):
    (tmp_path / "c.qasm").write_text("OPENQASM 3.0;")
    (tmp_path / "p.json").write_text(json.dumps(SAMPLER))
    (tmp_path / "x.txt").write_text("no program")
    for name, settings, message in (
        (
            "c.qasm",
            {"precision": 0.1},
            "precision=0.1 does not apply to a sampler, .* only: program, shots",
        ),
        (
            "c.qasm",
            {"observables": "Z", "shots": 3},
            "shots=3 does not apply to an estimator, .* Leave out shots",
        ),
        ("c.qasm", {"program": "estimator"}, "needs observables"),
        ("c.qasm", {"program": "noise"}, "must be one of: sampler, estimator"),
        (
            "p.json",
            {"observables": "Z"},
            "does not apply to a complete payload, which accepts only: shots",
        ),
        (
            "x.txt",
            {},
            "unknown file format; the file begins with b'no program'. .* for ibm, .* program_id",
        ),
    ):
        with pytest.raises(PayloadError, match=message):
            Payload.from_file(tmp_path / name, **settings)
    again = Payload.from_file(tmp_path / "p.json", shots=8)
    assert again.content["parameters"]["pubs"][0][2] == 8


def test_circuits_in_qpy_become_pubs(tmp_path):
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.rx(angle, 0)
    circuit.cx(0, 1)
    circuit.measure_all()
    with (tmp_path / "c.qpy").open("wb") as file:
        qpy.dump([circuit, circuit.assign_parameters([0.5])], file)

    payload = Payload.from_file(tmp_path / "c.qpy", parameter_values=[0.25], shots=5)

    (text, values, shots), (bound, *_) = payload.content["parameters"]["pubs"]
    assert (values, shots) == ([0.25], 5)
    assert [parameter.name for parameter in qasm3.loads(text).parameters] == ["a"]
    assert qasm3.loads(bound).parameters == set()
    data = (tmp_path / "c.qpy").read_bytes()
    (tmp_path / "half.qpy").write_bytes(data[: len(data) // 2])
    with pytest.raises(PayloadError, match="not a complete QPY file"):
        Payload.from_file(tmp_path / "half.qpy")


def test_a_pulser_sequence_needs_shots_and_values_of_its_variables(tmp_path):
    register = pulser.Register.from_coordinates([(0, 0), (8, 0)], prefix="atom")
    sequence = pulser.Sequence(register, pulser.MockDevice)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(500, 1, 0, 0), "global")
    path = tmp_path / "sequence.json"
    path.write_text(sequence.to_abstract_repr())

    payload = Payload.from_file(path, shots=30)

    assert payload.content == {"sequence": json.loads(path.read_text()), "job_runs": 30}
    payload.require_fit("EMU_FREE", None)
    with pytest.raises(PayloadError, match="needs a number of shots"):
        Payload.from_file(path)
    with pytest.raises(
        PayloadError, match="does not apply to a sequence, which accepts only: shots"
    ):
        Payload.from_file(path, shots=3, precision=0.1)
    amplitude = sequence.declare_variable("amplitude")
    sequence.add(pulser.Pulse.ConstantPulse(500, amplitude, 0, 0), "global")
    path.write_text(sequence.to_abstract_repr())
    with pytest.raises(PayloadError, match="unbound parameters: amplitude"):
        Payload.from_file(path, shots=3).require_fit("EMU_FREE", None)


def test_an_endless_device_is_refused_as_too_large():
    with pytest.raises(PayloadError, match=r"/dev/zero: size 50\.0 MB; must be at most 50 MB"):
        Payload.from_file("/dev/zero")


@pytest.mark.parametrize("precision", [float("nan"), float("inf"), -0.5])
def test_a_precision_must_be_non_negative_and_finite(precision, tmp_path):
    (tmp_path / "c.qasm").write_text("OPENQASM 3.0;")
    with pytest.raises(PayloadError, match=rf"precision={precision!r}: must be a non-negative"):
        Payload.from_file(tmp_path / "c.qasm", observables="Z", precision=precision)


def pulser_sequence() -> pulser.Sequence:
    sequence = pulser.Sequence(pulser.Register({"a": (0.0, 0.0)}), pulser.AnalogDevice)
    sequence.declare_channel("ising", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(100, 1.0, 0.0, 0.0), "ising")
    return sequence


def test_a_circuit_in_memory_is_a_payload(tmp_path):
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    with (tmp_path / "circuit.qpy").open("wb") as file:
        qpy.dump([circuit], file)
    from_file = Payload.from_file(tmp_path / "circuit.qpy", shots=5)

    assert to_payload(circuit, shots=5) == Payload.from_content(circuit, shots=5) == from_file
    estimate = Payload.from_content(circuit, observables="Z", precision=0.1)
    assert estimate.program == "estimator"


def test_a_sequence_in_memory_is_a_payload(tmp_path):
    sequence = pulser_sequence()
    (tmp_path / "sequence.json").write_text(sequence.to_abstract_repr())
    from_file = Payload.from_file(tmp_path / "sequence.json", shots=5)

    assert to_payload(sequence, shots=5) == from_file
    assert to_payload(sequence.to_abstract_repr(), shots=5) == from_file
    with pytest.raises(PayloadError, match=r"number of shots.*shots=100"):
        to_payload(sequence)


def test_text_in_memory_is_a_payload_and_a_name_is_a_file():
    openqasm = "OPENQASM 3.0; bit[1] c; c[0] = measure $0;"

    assert to_payload(json.dumps(SAMPLER)) == Payload.from_content(SAMPLER)
    assert to_payload(f"\n{json.dumps(SEQUENCE)}", shots=3).content["job_runs"] == 3
    assert to_payload(openqasm, shots=3).content["parameters"]["pubs"] == [[openqasm, None, 3]]
    with pytest.raises(PayloadError, match=r"payload: not valid JSON: .* Correct the text"):
        to_payload('{"program_id": ')
    with pytest.raises(PayloadError, match="nul"):
        to_payload("a\0b.json")
    with pytest.raises(PayloadError, match=r"bell\.json: cannot read the payload"):
        to_payload("bell.json")
    with pytest.raises(PayloadError, match="has type float, which is not a payload"):
        to_payload(1.5)


@pytest.mark.parametrize(
    "text",
    [
        'include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;',
        "// mine\n/* still */ bit[1] c; c[0] = measure $0;",
        "qubit q; bit[1] c; c[0] = measure q;",
        "x $0; bit[1] c; c[0] = measure $0;",
        "input float a; rx(a) $0;",
        "#pragma mine\nqubit q;",
    ],
)
def test_openqasm_3_may_omit_its_version(tmp_path, text):
    (tmp_path / "c.qasm").write_text(text)

    from_file = Payload.from_file(tmp_path / "c.qasm", shots=5)

    assert from_file.content["parameters"]["pubs"] == [[text, None, 5]]
    assert to_payload(text, shots=5) == from_file


@pytest.mark.parametrize(
    "text", ["hello; world", "#include <stdio.h>\nint main() {}", "; ;", "bit"]
)
def test_other_text_is_not_taken_for_openqasm(tmp_path, text):
    (tmp_path / "c.txt").write_text(text)

    with pytest.raises(PayloadError, match="unknown file format"):
        Payload.from_file(tmp_path / "c.txt")


def test_version_2_is_known_by_its_library(tmp_path):
    (tmp_path / "c.qasm").write_text('include "qelib1.inc"; qreg q[1]; x q[0];')

    with pytest.raises(PayloadError, match="in OpenQASM 2; must be OpenQASM 3"):
        Payload.from_file(tmp_path / "c.qasm", shots=5)


@pytest.mark.parametrize(
    "text",
    [
        "OPENQASM 3.0; bit[1] c;",
        '{"program_id": "sampler", "parameters": {"pubs": [["OPENQASM 3.0;"]]}}',
    ],
)
def test_a_byte_order_mark_is_ignored(text, tmp_path):
    """Editors on Windows write it."""
    (tmp_path / "circuit.qasm").write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert (
        Payload.from_file(
            tmp_path / "circuit.qasm", program="sampler" if text[0] == "O" else None
        ).program
        == "sampler"
    )


def test_a_number_with_a_fraction_is_no_integer():
    """JSON Schema takes 10.0 for one, but vendors do not."""
    pubs = [["OPENQASM 3.0;", None, 10.0]]
    with pytest.raises(PayloadError, match=r"10\.0 is not of type 'integer'"):
        Payload.from_content({"program_id": "sampler", "parameters": {"pubs": pubs}})
