"""Results and their files."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace

import jsonschema
import numpy as np
import pulser
import pytest
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit_ibm_runtime.json import RuntimeEncoder

from qrmi_workflows.errors import ResultError
from qrmi_workflows.results import QuantumResult, result_schema
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.vendors.registry import load_vendor


def encode(*pubs: PubResult) -> str:
    """Encode a result with IBM's own encoder."""
    return json.dumps(PrimitiveResult(list(pubs)), cls=RuntimeEncoder)


def result_of(program: str, text: str, vendor: str = "ibm") -> QuantumResult:
    return QuantumResult(
        qpu="ibm_fez",
        type=next(iter(load_vendor(vendor).types)),
        program=program,
        task_id="t1",
        payload_digest="0" * 64,
        submitted="2026-01-01T00:00:00+00:00",
        completed="2026-01-01T00:00:01+00:00",
        data=load_vendor(vendor).decode(program, text),
        vendor_result=text,
    )


def test_counts_equal_those_of_qiskit():
    bits = BitArray.from_counts({"1" * 11: 3, "0" * 10 + "1": 5, "0" * 11: 2}, num_bits=11)
    wide = BitArray(np.random.default_rng(1).integers(0, 256, (2, 3, 40, 2), np.uint8), 16)
    text = encode(SamplerPubResult(DataBin(shape=(), meas=bits, c=bits)))
    shaped = encode(SamplerPubResult(DataBin(shape=(2, 3), meas=wide)))

    result = result_of("sampler", text)

    assert result.counts("meas") == bits.get_counts()
    assert result.data[0]["registers"]["meas"]["num_bits"] == 11
    broadcast = result_of("sampler", shaped).counts()
    assert broadcast[1][2] == wide.get_counts((1, 2))
    assert result.to_primitive_result()[0].data.meas.get_counts() == bits.get_counts()


def test_expectation_values_keep_their_shape():
    pub = PubResult(DataBin(shape=(2,), evs=np.array([0.5, -1.0]), stds=np.array([0.1, 0.0])))

    result = result_of("estimator", encode(pub))

    assert result.expectation_values() == ([0.5, -1.0], [0.1, 0.0])


def test_counts_are_read_from_pasqals_counter():
    text = '{"counter": {"01": 3, "00": 1}}'

    assert result_of("pulser", text, "pasqal").counts() == {"00": 1, "01": 3}


TEXTS = ["", "{}", "[]", '{"counter": 1}', '{"__value__": {}}', "[" * 100_000]


@pytest.mark.parametrize("vendor", ["ibm", "pasqal"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_malformed_result_raises_a_result_error(vendor, text):
    with pytest.raises(ResultError, match="cannot be decoded"):
        load_vendor(vendor).decode("sampler", text)


@pytest.mark.parametrize("text", [*TEXTS, '{"__type__": "ndarray", "__value__": "AAAA"}'])
def test_a_malformed_result_does_not_convert_for_qiskit(text):
    pub = PubResult(DataBin(shape=(), evs=np.array(0.5), stds=np.array(0.1)))
    result = replace(result_of("estimator", encode(pub)), vendor_result=text)
    with pytest.raises(ResultError, match="cannot be decoded"):
        result.to_primitive_result()


@pytest.mark.parametrize("registers", [5, {"atoms": 5}, {"atoms": {"num_bits": 2}}])
def test_modified_registers_raise_a_result_error(registers):
    result = result_of("pulser", '{"counter": {"01": 3}}', "pasqal")
    with pytest.raises(ResultError, match="has no counts"):
        replace(result, data=[{"registers": registers}]).counts()


def test_saving_never_replaces_a_device(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    result = result_of("pulser", '{"counter": {"01": 3}}', "pasqal")

    for name in ("null", "fifo", "."):
        with pytest.raises(FileExistsError, match="the path is a folder, device or FIFO"):
            result.save(tmp_path / name)
    assert (tmp_path / "null").is_symlink()


def test_a_saved_result_loads_unchanged(tmp_path):
    text = '{"counter": {"01": 3, "00": 1}}'
    result = result_of("pulser", text, "pasqal")

    result.save(tmp_path / "r.json")

    assert QuantumResult.load(tmp_path / "r.json") == result
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["data"][0]["registers"]["atoms"]["counts"] == {"00": 1, "01": 3}
    assert plain["vendor_result"] == text


def test_a_missing_register_pub_or_value_is_refused_with_what_exists():
    result = result_of("pulser", '{"counter": {"01": 3}}', "pasqal")

    with pytest.raises(ResultError, match="register='meas': must be one of: atoms"):
        result.counts("meas")
    with pytest.raises(ResultError, match="pub=1: must be at least 0 and less than 1"):
        result.counts(pub=1)
    with pytest.raises(ResultError, match="no expectation values"):
        result.expectation_values()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the result file"),
        ("[]", "not a result file"),
        ('{"format": "qrmi-workflows-result", "version": 99}', "has version 99"),
        (
            '{"format": "qrmi-workflows-result", "version": 1, "qpu": "a"}',
            "the result is incomplete: `completed` is missing",
        ),
    ],
)
def test_a_file_that_is_not_a_result_is_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)

    with pytest.raises(ResultError, match=message):
        QuantumResult.load(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "r.json"
    write_atomically(path, "old")

    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shots", [1, 20_000])
def test_a_large_file_is_compressed(tmp_path, shots):
    """It loads like any other, and follows the published schema."""
    counts = {f"{number:030b}": 1 for number in range(shots)}
    result = result_of("pulser", json.dumps({"counter": counts}), "pasqal")

    result.save(tmp_path / "r.json")

    data = (tmp_path / "r.json").read_bytes()
    compressed = shots > 1
    assert data.startswith(b"\x1f\x8b") is compressed
    assert QuantumResult.load(tmp_path / "r.json") == result
    text = gzip.decompress(data) if compressed else data
    assert len(text) > 1_000_000 or not compressed
    jsonschema.Draft202012Validator(result_schema()).validate(json.loads(text))
    result.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == data


def test_the_published_schema_describes_the_file_exactly(tmp_path):
    bits = BitArray(np.random.default_rng(1).integers(0, 256, (2, 3, 40, 2), np.uint8), 16)
    pub = PubResult(DataBin(shape=(2,), evs=np.array([0.5, -1.0]), stds=np.array([0.1, 0.0])))
    schema = result_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for program, text in (
        ("sampler", encode(SamplerPubResult(DataBin(shape=(2, 3), meas=bits)))),
        ("estimator", encode(pub)),
    ):
        result_of(program, text).save(tmp_path / "r.json")
        document = json.loads((tmp_path / "r.json").read_text())
        validator.validate(document)
        assert set(document) == set(schema["required"])
        for name in document:
            assert not validator.is_valid({k: v for k, v in document.items() if k != name})
            assert not validator.is_valid({**document, name: None})
        assert not validator.is_valid({**document, "more": 1})
        assert not validator.is_valid({**document, "data": [{"registers": {"a": {}}}]})


@pytest.mark.parametrize("large", [False, True])
def test_a_truncated_file_is_refused(tmp_path, large):
    counts = {f"{number:030b}": 1 for number in range(20_000 if large else 3)}
    path = tmp_path / "r.json"
    result_of("pulser", json.dumps({"counter": counts}), "pasqal").save(path)
    whole = path.read_bytes()

    for end in [0, 1, 2, 10, len(whole) // 2, len(whole) - 5]:
        path.write_bytes(whole[:end])
        with pytest.raises(ResultError, match="cannot read the result file"):
            QuantumResult.load(path)
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with pytest.raises(ResultError):
        QuantumResult.load(path)


def test_a_modified_file_is_refused(tmp_path):
    path = tmp_path / "r.json"
    result_of("pulser", '{"counter": {"01": 3}}', "pasqal").save(path)
    document = json.loads(path.read_text())
    for change, message in (
        ({"data": {}}, "`data` is"),
        ({"data": [1]}, "`data` must be a list of objects"),
        ({"qpu": 7}, "`qpu` is 7; must be a string"),
        ({"note": "mine"}, "unknown key `note`"),
        ({"version": 2}, "has version 2; must be 1 for this release. Install a newer"),
        ({"format": "other"}, "`format` must be"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(ResultError, match=message):
            QuantumResult.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ResultError, match="cannot read the result file"):
        QuantumResult.load(path)
    with pytest.raises(ResultError, match="No such file"):
        QuantumResult.load(tmp_path / "absent.json")


def test_arrays_keep_shots_together_across_registers():
    """Every bit equals Qiskit's, and row n of both registers is from shot n."""
    generator = np.random.default_rng(3)
    first = BitArray.from_bool_array(generator.integers(0, 2, (4, 50, 11)).astype(bool))
    second = BitArray.from_bool_array(generator.integers(0, 2, (4, 50, 3)).astype(bool))
    text = encode(SamplerPubResult(DataBin(shape=(4,), a=first, b=second)))

    arrays = result_of("sampler", text).to_numpy()

    assert arrays["a"].shape == (4, 50, 11)
    for name, bits in (("a", first), ("b", second)):
        strings = ["".join(map(str, row)) for row in arrays[name][2].tolist()]
        assert strings == bits.get_bitstrings(2)


def test_arrays_of_estimates_and_of_atoms():
    pub = PubResult(DataBin(shape=(2,), evs=np.array([0.5, -1.0]), stds=np.array([0.1, 0.0])))
    arrays = result_of("estimator", encode(pub)).to_numpy()
    assert arrays["evs"].tolist() == [0.5, -1.0]
    assert arrays["stds"].tolist() == [0.1, 0.0]
    atoms = result_of("pulser", '{"counter": {"01": 2, "10": 1}}', "pasqal").to_numpy()["atoms"]
    assert atoms.tolist() == [[0, 1], [0, 1], [1, 0]]
    with pytest.raises(ResultError, match="pub=1: must be at least 0 and less than 1"):
        result_of("estimator", encode(pub)).to_numpy(pub=1)


def test_a_result_converts_to_pulsers_results():
    register = pulser.Register.from_coordinates([(0, 0), (8, 0)], prefix="atom")
    sequence = pulser.Sequence(register, pulser.MockDevice)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(500, 1, 0, 0), "global")
    result = result_of("pulser", '{"counter": {"01": 2, "10": 1}}', "pasqal")

    for form in (sequence, sequence.to_abstract_repr(), json.loads(sequence.to_abstract_repr())):
        results = result.to_pulser_results(form)
        assert dict(results.final_bitstrings) == {"01": 2, "10": 1}
        assert results.atom_order == ("atom0", "atom1")
        assert results.total_duration == 500

    other = replace(result, vendor_result='{"counter": {"011": 2}}')
    with pytest.raises(ResultError, match="result has 3 atoms, but the sequence has 2"):
        other.to_pulser_results(sequence)


def test_a_result_converts_only_to_its_own_vendors_objects():
    atoms = result_of("pulser", '{"counter": {"01": 2}}', "pasqal")
    pub = PubResult(DataBin(shape=(), evs=np.array(0.5), stds=np.array(0.1)))
    with pytest.raises(ResultError, match=r"must be one of: to_pulser_results\."):
        atoms.to_primitive_result()
    with pytest.raises(ResultError, match=r"must be one of: to_primitive_result\."):
        result_of("estimator", encode(pub)).to_pulser_results("{}")


READ_RESULT = """
import sys
for name in ("qiskit", "qiskit_ibm_runtime", "pulser", "pulser_simulation"):
    sys.modules[name] = None
from qrmi_workflows import QuantumResult
from qrmi_workflows.errors import ConfigError
result = QuantumResult.load(sys.argv[1])
print(result.counts(), result.to_numpy()["meas"].tolist())
try:
    result.to_primitive_result()
except ConfigError as error:
    print(error)
"""


def test_a_result_can_be_read_without_quantum_packages(tmp_path):
    """Counts and arrays are available. A conversion names the extra to install."""
    bits = BitArray.from_counts({"01": 2}, num_bits=2)
    result_of("sampler", encode(SamplerPubResult(DataBin(shape=(), meas=bits)))).save(
        tmp_path / "r.json"
    )

    command = [sys.executable, "-c", READ_RESULT, str(tmp_path / "r.json")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert output.startswith("{'01': 2} [[0, 1], [0, 1]]")
    assert "pip install 'qrmi-workflows[ibm]'" in output


def refuse(name: str) -> None:
    pytest.fail(f"{name} is not JSON")


def test_numbers_that_are_not_finite_are_written_as_strings_and_read_back(tmp_path):
    pub = PubResult(DataBin(shape=(2,), evs=np.array([0.5, -np.inf]), stds=np.array([np.inf, 0.0])))
    result = result_of("estimator", encode(pub))
    result.save(tmp_path / "r.json")

    document = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert document["data"] == [{"evs": [0.5, "-Infinity"], "stds": ["Infinity", 0.0]}]
    jsonschema.Draft202012Validator(result_schema()).validate(document)
    assert QuantumResult.load(tmp_path / "r.json") == result
    assert result.expectation_values() == ([0.5, -np.inf], [np.inf, 0.0])


def test_levels_are_written_and_read_back(tmp_path):
    levels = np.array([[0.1 + 0.2j, 1j], [0.3 - 0.1j, -1]])
    result = result_of("sampler", encode(SamplerPubResult(DataBin(c=levels))))
    result.save(tmp_path / "r.json")

    document = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    jsonschema.Draft202012Validator(result_schema()).validate(document)
    assert document["data"][0]["registers"]["c"]["levels"]["imag"] == [[0.2, 1.0], [-0.1, 0.0]]
    read = QuantumResult.load(tmp_path / "r.json")
    assert read == result
    assert np.array_equal(read.to_numpy()["c"], levels)
    assert np.array_equal(read.to_primitive_result()[0].data.c, levels)
    with pytest.raises(ResultError, match=r"'c' of PUB 0 has levels .* Use `to_numpy\(\)`"):
        read.counts()
