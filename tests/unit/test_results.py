"""Results and their file."""

import json

import numpy as np
import pytest
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit_ibm_runtime.json import RuntimeEncoder

from qrmi_workflows.errors import ResultError
from qrmi_workflows.results import QuantumResult, write_whole
from qrmi_workflows.vendors import load_vendor


def encode(*pubs: PubResult) -> str:
    """Encode as the vendor does, with the vendor's own encoder."""
    return json.dumps(PrimitiveResult(list(pubs)), cls=RuntimeEncoder)


def result_of(program: str, text: str, vendor: str = "ibm") -> QuantumResult:
    return QuantumResult(
        qpu="ibm_fez",
        type="ibm-quantum-compute-service",
        program=program,
        task_id="t1",
        payload_digest="0" * 64,
        submitted="2026-01-01T00:00:00+00:00",
        completed="2026-01-01T00:00:01+00:00",
        data=load_vendor(vendor).decode(program, text),
        vendor_result=text,
    )


def test_counts_agree_with_qiskits_own_for_every_width_and_shape():
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


def test_pasqals_counter_is_read():
    text = '{"counter": {"01": 3, "00": 1}}'

    assert result_of("pulser", text, "pasqal").counts() == {"00": 1, "01": 3}


@pytest.mark.parametrize("vendor", ["ibm", "pasqal"])
@pytest.mark.parametrize("text", ["", "{}", "[]", '{"counter": 1}', '{"__value__": {}}'])
def test_a_text_that_is_no_result_is_an_error_of_ours(vendor, text):
    with pytest.raises(ResultError, match="vendor_result"):
        load_vendor(vendor).decode("sampler", text)


def test_the_file_gives_back_the_same_result_and_needs_no_quantum_package(tmp_path):
    text = '{"counter": {"01": 3, "00": 1}}'
    result = result_of("pulser", text, "pasqal")

    result.save(tmp_path / "r.json")

    assert QuantumResult.load(tmp_path / "r.json") == result
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["data"][0]["registers"]["atoms"]["counts"] == {"00": 1, "01": 3}
    assert plain["vendor_result"] == text


def test_what_is_asked_of_a_result_that_lacks_it_is_told_what_there_is():
    result = result_of("pulser", '{"counter": {"01": 3}}', "pasqal")

    with pytest.raises(ResultError, match="allowed are atoms"):
        result.counts("meas")
    with pytest.raises(ResultError, match="has 1; the first is 0"):
        result.counts(pub=1)
    with pytest.raises(ResultError, match="no expectation values"):
        result.expectation_values()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no result file"),
        ("[]", "not a result file"),
        ('{"format": "qrmi-workflows-result", "version": 99}', "version 99"),
        ('{"format": "qrmi-workflows-result", "version": 1, "qpu": "a"}', "not a whole result"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, text, said):
    (tmp_path / "r.json").write_text(text)

    with pytest.raises(ResultError, match=said):
        QuantumResult.load(tmp_path / "r.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "r.json"
    write_whole(path, "old")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
