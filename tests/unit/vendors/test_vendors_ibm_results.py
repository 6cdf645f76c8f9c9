"""IBM's results, in each encoding that its service answers with."""

import json
import math
import zlib
from base64 import b64encode

import numpy as np
import pytest
from ibm_quantum_schemas.executor.version_1_0 import models as executor_1
from ibm_quantum_schemas.executor.version_2_0 import models as executor_2
from ibm_quantum_schemas.noise_learner_v3.version_0_1 import models as noise_learner
from qiskit import QuantumCircuit
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit.quantum_info import PauliList
from qiskit_ibm_runtime.json import RuntimeEncoder
from qiskit_ibm_runtime.results.noise_learner import (
    LayerError,
    NoiseLearnerResult,
    PauliLindbladError,
)

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.ibm.results import decode_arrays, decode_data, to_primitive_result

GENERATOR = np.random.default_rng(5)
BITS = BitArray.from_bool_array(GENERATOR.integers(0, 2, (2, 3, 40, 11)).astype(bool))


def encode(*pubs: PubResult) -> str:
    """Encode a result with IBM's own encoder."""
    return json.dumps(PrimitiveResult(list(pubs)), cls=RuntimeEncoder)


def plain(*pubs: dict, spans: object = None) -> str:
    """Render a result as IBM's service does without `support_qiskit`."""
    metadata = {"version": 2}
    if spans is not None:
        metadata["execution"] = {"execution_spans": spans}
    results = [{"data": data, "metadata": {"circuit_metadata": {}}} for data in pubs]
    return json.dumps({"results": results, "metadata": metadata})


def samples_of(bits: BitArray, *, flat: bool = False) -> dict:
    """Render a register as the service does: a hexadecimal number for each shot."""
    strings = np.array([hex(int(each, 2)) for each in bits.get_bitstrings()], dtype=object)
    shape = (-1,) if flat else (*bits.shape, bits.num_shots)
    return {"samples": strings.reshape(shape).tolist(), "num_bits": bits.num_bits}


def test_samples_in_plain_json_give_the_counts_of_the_encoded_result():
    single = BITS[0, 0]
    texts = [
        plain({"c": samples_of(single), "meas": samples_of(single)}, {"c": samples_of(BITS)}),
        encode(
            SamplerPubResult(DataBin(c=single, meas=single)),
            SamplerPubResult(DataBin(c=BITS, shape=(2, 3))),
        ),
    ]

    data, same = (decode_data("sampler", text) for text in texts)

    assert data == same
    assert data[0]["registers"]["c"] == {"num_bits": 11, "counts": single.get_counts()}
    assert data[1]["registers"]["c"]["counts"][1][2] == BITS[1, 2].get_counts()
    arrays, same = (decode_arrays("sampler", text) for text in texts)
    assert all(np.array_equal(arrays[pub]["c"], same[pub]["c"]) for pub in (0, 1))
    assert to_primitive_result(texts[0])[1].data.c == BITS
    assert to_primitive_result(texts[0]).metadata == {"version": 2}


@pytest.mark.parametrize(
    "slices",
    [
        [[2, 3, 40], [0, 6], [0, 40]],
        [[4, 2, 3, 10], True, [0, 24], [0, 10], 40],
        [[2, 3, 4, 10], False, [0, 24], [0, 10], 40],
    ],
    ids=["plain", "twirled at front", "twirled"],
)
def test_samples_in_one_list_get_the_shape_of_the_execution_spans(slices):
    spans = [[{"date": "2026-06-06T19:04:43"}, {"date": "2026-06-06T19:04:44"}, {"0": slices}]]
    text = plain({"c": samples_of(BITS, flat=True)}, spans=spans)

    assert to_primitive_result(text)[0].data.c == BITS
    assert decode_data("sampler", text)[0]["registers"]["c"]["counts"][0][1] == (
        BITS[0, 1].get_counts()
    )


def test_samples_of_many_bits_keep_their_leading_zeros():
    text = plain({"c": {"samples": ["0x1", "0x" + "f" * 32, "0x0"], "num_bits": 130}})

    counts = decode_data("sampler", text)[0]["registers"]["c"]["counts"]

    assert counts == {"0" * 129 + "1": 1, "00" + "1" * 128: 1, "0" * 130: 1}


@pytest.mark.parametrize("encoding", ["plain", "encoded"])
def test_a_register_may_have_any_name(encoding):
    """Names that results of other kinds have, too."""
    single = BITS[0, 0]
    names = ["evs", "stds", "samples", "num_bits", "data", "results", "counts", "registers"]
    if encoding == "plain":
        text = plain({name: samples_of(single) for name in names})
    else:
        text = encode(SamplerPubResult(DataBin(**dict.fromkeys(names, single))))

    (pub,) = decode_data("sampler", text)

    assert pub == {
        "registers": {name: {"num_bits": 11, "counts": single.get_counts()} for name in names}
    }
    assert set(decode_arrays("sampler", text)[0]) == set(names)
    assert to_primitive_result(text)[0].data.evs == single


def test_estimates_in_plain_json_are_those_of_the_encoded_result():
    values = {"evs": np.array([[0.5, -1.0]]), "stds": np.array([[0.1, np.inf]])}
    scalars = {"evs": np.array(0.5), "stds": np.array(0.25)}
    texts = [
        plain(
            {"evs": [[0.5, -1.0]], "stds": [[0.1, math.inf]]}, {"evs": 0.5, "stds": 0.25}
        ),  # IBM writes Infinity bare, as Python does
        encode(PubResult(DataBin(**values, shape=(1, 2))), PubResult(DataBin(**scalars))),
    ]
    assert "Infinity" in texts[0]

    for text in texts:
        assert decode_data("estimator", text) == [
            {"evs": [[0.5, -1.0]], "stds": [[0.1, math.inf]]},
            {"evs": 0.5, "stds": 0.25},
        ]
        arrays = decode_arrays("estimator", text)
        assert np.array_equal(arrays[0]["stds"], values["stds"])
        assert arrays[1]["evs"].shape == ()
        assert to_primitive_result(text)[0].data.shape == (1, 2)
        assert to_primitive_result(text)[1].data.stds == 0.25


def test_estimates_that_are_absent_or_not_numbers_are_kept():
    text = plain({"evs": [0.5, None], "stds": [math.nan, 0.1], "ensemble_standard_error": None})

    (pub,) = decode_data("estimator", text)

    assert pub["evs"][0] == 0.5
    assert math.isnan(pub["evs"][1])
    assert math.isnan(pub["stds"][0])
    assert pub["ensemble_standard_error"] is None
    assert set(decode_arrays("estimator", text)[0]) == {"evs", "stds"}


@pytest.mark.parametrize("shape", [(2, 3, 40, 11), (40, 11), (2, 11)])
def test_levels_are_complex_arrays_in_their_shape(shape):
    levels = GENERATOR.normal(size=(*shape, 2)) @ [1, 1j]
    text = encode(SamplerPubResult(DataBin(c=levels, shape=shape[:-2])))

    (pub,) = decode_data("sampler", text)
    (arrays,) = decode_arrays("sampler", text)

    assert pub["registers"]["c"]["num_bits"] == 11
    parts = pub["registers"]["c"]["levels"]
    assert np.array_equal(np.array(parts["real"]) + 1j * np.array(parts["imag"]), levels)
    assert np.array_equal(arrays["c"], levels)
    assert arrays["c"].dtype == complex


@pytest.mark.parametrize(
    "data",
    [
        {"c": {"samples": ["0x4"], "num_bits": 2}},
        {"c": {"samples": ["0x4"]}},
        {"c": {"samples": ["0x1", ["0x1"]], "num_bits": 2}},
        {"c": "0x1"},
        {"c": [[0.1, 0.2]]},
        {"c": None},
    ],
)
def test_malformed_registers_raise_a_result_error(data):
    with pytest.raises(ResultError, match="cannot be decoded"):
        decode_data("sampler", plain(data))


def test_the_result_of_an_executor_has_its_arrays():
    booleans = GENERATOR.integers(0, 2, (3, 5, 7)).astype(bool)
    levels = GENERATOR.normal(size=(3, 2, 2)) @ [1, 1j]
    for models, tensor in (
        (executor_1, executor_1.TensorModel),
        (executor_2, executor_2.CompressedTensorModel),
    ):
        results = {"c": tensor.from_numpy(booleans), "iq": tensor.from_numpy(levels)}
        item = {name: json.loads(each.model_dump_json()) for name, each in results.items()}
        text = json.dumps({"schema_version": "v1.0", "data": [{"results": item, "metadata": None}]})

        (arrays,) = decode_arrays("executor", text)
        (data,) = decode_data("executor", text)

        assert np.array_equal(arrays["c"], booleans), models
        assert np.array_equal(arrays["iq"], levels)
        assert data["results"]["c"] == booleans.tolist()
        assert data["results"]["iq"]["imag"] == levels.imag.tolist()


def test_the_result_of_a_noise_learner_has_its_rates():
    rates = np.array([0.1, 0.2])
    tensor = noise_learner.F64TensorModel.from_numpy(rates)
    layer = {"generators_sparse": [[["X", [0]]], [["Y", [1]]]], "num_qubits": 2}
    layer["rates"] = json.loads(tensor.model_dump_json())
    newer = json.dumps({"schema_version": "v0.1", "data": [layer]})
    error = PauliLindbladError(PauliList(["IX", "YI"]), rates)
    learned = NoiseLearnerResult([LayerError(QuantumCircuit(2), [0, 1], error)], {"backend": "b"})
    older = json.dumps(learned, cls=RuntimeEncoder)

    (data,) = decode_data("noise-learner", newer)
    assert data["rates"] == [0.1, 0.2]
    assert data["generators_sparse"] == layer["generators_sparse"]
    assert decode_arrays("noise-learner", newer)[0]["rates"].tolist() == [0.1, 0.2]
    (data,) = decode_data("noise-learner", older)
    assert data["error"]["rates"] == [0.1, 0.2]
    assert data["qubits"] == [0, 1]
    assert decode_arrays("noise-learner", older)[0]["error.rates"].tolist() == [0.1, 0.2]
    json.dumps(data)


def test_the_result_of_an_unknown_program_is_decoded_as_far_as_it_is_known():
    array = b64encode(zlib.compress(b"not an array")).decode()
    assert decode_data("other", '[{"a": 1}, 2]') == [{"value": [{"a": 1}, 2]}]
    assert decode_data("other", '{"results": [[1], {"a": {"b": 2}}]}') == [
        {"value": [1]},
        {"a": {"b": 2}},
    ]
    with pytest.raises(ResultError, match="cannot be decoded"):
        decode_data("other", json.dumps({"a": {"__type__": "ndarray", "__value__": array}}))


def test_a_register_without_bits_counts_its_shots():
    empty = BitArray(np.zeros((3, 0), np.uint8), 0)

    for text in (
        plain({"c": samples_of(BITS[0, 0]), "none": {"samples": ["0x0"] * 3, "num_bits": 0}}),
        encode(SamplerPubResult(DataBin(none=empty))),
    ):
        assert decode_data("sampler", text)[0]["registers"]["none"]["counts"] == {"": 3}


@pytest.mark.parametrize("metadata", [None, [], "none", {"warnings": "one"}, {"warnings": None}])
def test_metadata_of_another_form_costs_no_result(metadata):
    results = [{"data": {"warnings": samples_of(BITS[0, 0])}, "metadata": metadata}]

    (pub,) = decode_data("sampler", json.dumps({"results": results, "metadata": metadata}))

    assert pub == {"registers": {"warnings": {"num_bits": 11, "counts": BITS[0, 0].get_counts()}}}
