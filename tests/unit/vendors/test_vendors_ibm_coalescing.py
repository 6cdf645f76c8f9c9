"""Payloads that share a task: which go together, and that each result is that of its own PUBs."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit_ibm_runtime.execution_span import DoubleSliceSpan, ExecutionSpans
from qiskit_ibm_runtime.json import RuntimeEncoder

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.ibm import IBM
from qrmi_workflows.vendors.ibm.coalescing import coalesce, describe, split
from qrmi_workflows.vendors.ibm.results import decode_data, to_primitive_result

CIRCUIT = "OPENQASM 3.0; bit[1] c; c[0] = measure $0;"
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def sampler(*pubs, **parameters):
    return {"program_id": "sampler", "parameters": {"pubs": list(pubs), **parameters}}


def estimator(*pubs, **parameters):
    return {"program_id": "estimator", "parameters": {"pubs": list(pubs), **parameters}}


TOGETHER = [
    (sampler([CIRCUIT, None, 5]), sampler([CIRCUIT, [0.5], 5])),
    (sampler([CIRCUIT, None, 5]), sampler([CIRCUIT], shots=5)),
    (sampler([CIRCUIT, None, 5]), sampler(CIRCUIT, shots=5)),
    (sampler([CIRCUIT]), sampler(CIRCUIT, CIRCUIT)),
    (sampler([CIRCUIT], version=2), sampler([CIRCUIT])),
    (
        sampler([CIRCUIT], options={"default_shots": 5, "twirling": {"enable_gates": True}}),
        sampler([CIRCUIT], options={"twirling": {"enable_gates": True}, "default_shots": 5}),
    ),
    (estimator([CIRCUIT, "Z", [], 0.1]), estimator([CIRCUIT, "X"], precision=0.1)),
]
APART = [
    (sampler([CIRCUIT, None, 5]), sampler([CIRCUIT, None, 6])),
    (sampler([CIRCUIT, None, 5]), sampler([CIRCUIT])),
    (sampler([CIRCUIT]), sampler([CIRCUIT], support_qiskit=True)),
    (sampler([CIRCUIT]), sampler([CIRCUIT], options={"default_shots": 5})),
    (sampler([CIRCUIT]), estimator([CIRCUIT, "Z"])),
    (estimator([CIRCUIT, "Z", [], 0.1]), estimator([CIRCUIT, "Z", [], 0.2])),
    (estimator([CIRCUIT, "Z"]), estimator([CIRCUIT, "Z"], resilience_level=1)),
]
ALONE = [
    sampler([CIRCUIT, None, 5], [CIRCUIT, None, 6]),
    sampler([CIRCUIT], options={"simulator": {"seed_simulator": 1}}),
    estimator([CIRCUIT, "Z"], options={"seed_estimator": 1}),
    {"program_id": "executor", "parameters": {"schema_version": "v1", "quantum_program": {}}},
    {"program_id": "noiselearner", "parameters": {"circuits": [CIRCUIT]}},
]


@pytest.mark.parametrize(("one", "other"), TOGETHER)
def test_payloads_whose_options_and_shots_agree_may_share_a_task(one, other):
    assert describe(one).key == describe(other).key


@pytest.mark.parametrize(("one", "other"), APART)
def test_payloads_that_differ_do_not_share_a_task(one, other):
    assert describe(one).key != describe(other).key


@pytest.mark.parametrize("payload", ALONE)
def test_what_cannot_share_a_task_goes_alone(payload):
    assert describe(payload) is None


@pytest.mark.parametrize(
    ("values", "sets"),
    [
        (None, 1),
        ([], 1),
        ([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], 3),
        ([0.1, 0.2], 2),
        ([[[0.1], [0.2]], [[0.3], [0.4]]], 4),
        ({"a": [0.1, 0.2, 0.3]}, 3),
        (json.loads(json.dumps(np.zeros((4, 3)), cls=RuntimeEncoder)), 4),
        ({"__type__": "ndarray", "__value__": "broken"}, 1),
    ],
)
def test_executions_count_every_set_of_parameter_values(values, sets):
    assert describe(sampler([CIRCUIT, values, 10])).executions == 10 * sets


def test_a_coalesced_payload_has_the_pubs_of_all_with_their_own_shots():
    together = coalesce([sampler(CIRCUIT, [CIRCUIT, [1.0]], shots=5), sampler([CIRCUIT, None, 5])])

    assert together["parameters"]["pubs"] == [
        [CIRCUIT, None, 5],
        [CIRCUIT, [1.0], 5],
        [CIRCUIT, None, 5],
    ]
    assert "shots" not in together["parameters"]
    assert IBM.encode(together).fields["program_id"] == "sampler"


def test_a_coalesced_estimator_keeps_each_precision_and_set_of_observables():
    together = coalesce(
        [estimator([CIRCUIT, "Z"], precision=0.1), estimator([CIRCUIT, "X", [], 0.1])]
    )

    assert together["parameters"]["pubs"] == [[CIRCUIT, "Z", None, 0.1], [CIRCUIT, "X", [], 0.1]]


def bits(value: int, shots: int = 3, num_bits: int = 4) -> BitArray:
    return BitArray.from_samples([value] * shots, num_bits)


def counts_of(text: str) -> list:
    return [
        {name: register["counts"] for name, register in pub["registers"].items()}
        for pub in decode_data("sampler", text)
    ]


def encoded(*values: int) -> str:
    pubs = [SamplerPubResult(DataBin(c=bits(value)), {"n": value}) for value in values]
    slices = {index: ((3,), slice(0, 1), slice(0, 3)) for index in range(len(values))}
    spans = ExecutionSpans([DoubleSliceSpan(TIME, TIME, slices)])
    metadata = {"version": 2, "execution": {"execution_spans": spans}}
    return json.dumps(PrimitiveResult(pubs, metadata), cls=RuntimeEncoder)


def plain(*values: int) -> str:
    results = [
        {"data": {"c": {"samples": [hex(value)] * 6, "num_bits": 4}}, "metadata": {}}
        for value in values
    ]
    # Those of a PUB with two sets of parameter values came in one list.
    slices = {str(index): [[2, 3], [0, 2], [0, 3]] for index in range(len(values))}
    spans = [["t", "t", slices], ["t", "t", {"0": [[2, 3], [0, 1], [0, 3]]}]]
    return json.dumps({"results": results, "metadata": {"execution": {"execution_spans": spans}}})


def test_each_payload_gets_its_own_pubs_of_an_encoded_result():
    parts = split(encoded(1, 2, 3), [2, 1])

    assert [counts_of(part) for part in parts] == [
        [{"c": {"0001": 3}}, {"c": {"0010": 3}}],
        [{"c": {"0011": 3}}],
    ]
    last = to_primitive_result(parts[1])
    assert last[0].metadata == {"n": 3}
    assert [span.pub_idxs for span in last.metadata["execution"]["execution_spans"]] == [[0]]


def test_each_payload_gets_its_own_pubs_of_a_plain_result():
    parts = split(plain(1, 2, 3), [1, 2])

    assert [counts_of(part) for part in parts] == [
        [{"c": [{"0001": 3}, {"0001": 3}]}],
        [{"c": [{"0010": 3}, {"0010": 3}]}, {"c": [{"0011": 3}, {"0011": 3}]}],
    ]
    spans = [json.loads(part)["metadata"]["execution"]["execution_spans"] for part in parts]
    assert [[sorted(span[2]) for span in each] for each in spans] == [[["0"], ["0"]], [["0", "1"]]]


def test_estimates_are_the_same_numbers_after_the_split():
    values = [0.1 + 0.2, float("nan"), 1e-300]
    text = json.dumps(
        PrimitiveResult(
            [PubResult(DataBin(evs=np.array(value), stds=np.array(0.0))) for value in values]
        ),
        cls=RuntimeEncoder,
    )
    plain_text = json.dumps({"results": [{"data": {"evs": v, "stds": 0.0}} for v in values]})

    for source in (text, plain_text):
        evs = [decode_data("estimator", part)[0]["evs"] for part in split(source, [1, 1, 1])]
        assert np.array_equal(evs, values, equal_nan=True)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"results": null}', '{"__type__": "PrimitiveResult"}', plain(1)],
)
def test_a_text_that_cannot_be_split_is_refused(text):
    with pytest.raises(ResultError, match="cannot be split"):
        split(text, [1, 1])
