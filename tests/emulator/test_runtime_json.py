"""The emulator's encoding is that of qiskit-ibm-runtime, and needs none of its modules."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.primitives.containers import (
    BitArray,
    DataBin,
    PrimitiveResult,
    PubResult,
    SamplerPubResult,
)
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit_ibm_runtime.json import RuntimeDecoder, RuntimeEncoder

from qrmi_workflows.emulator.simulators.runtime_json import decode, encode

BITS = BitArray(np.arange(12, dtype=np.uint8).reshape(2, 6, 1), num_bits=5)
SAMPLED = SamplerPubResult(DataBin(meas=BITS, shape=(2,)), metadata={"shots": np.int64(6)})
ESTIMATED = PubResult(DataBin(evs=np.array(0.5), stds=np.ones((2, 3))), metadata={"a": None})


@pytest.mark.parametrize(
    "value",
    [
        PrimitiveResult([SAMPLED, SAMPLED], metadata={"version": 2}),
        PrimitiveResult([ESTIMATED]),
        {"results": [{"data": {"evs": [0.5]}}], "metadata": {"n": np.int64(3)}},
        [np.array(["a", None], dtype=object), {1, 2}, 1j],
    ],
)
def test_a_result_is_encoded_as_qiskits_encoder_does(value):
    assert encode(value) == json.dumps(value, cls=RuntimeEncoder)


def test_a_jobs_input_is_decoded_as_qiskits_decoder_does():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.measure_all()
    observables = ObservablesArray([{"ZZ": 1.0}, {"XI": 0.5}])
    pubs = [[circuit, observables, np.linspace(0, 1, 3), 0.1], ["OPENQASM 3.0;", {"a": [1.0]}, 5]]
    text = json.dumps({"pubs": pubs, "options": {"b": "linear"}}, cls=RuntimeEncoder)

    for found in (decode(text), json.loads(text, cls=RuntimeDecoder)):
        assert found["pubs"][0][0] == circuit
        assert found["pubs"][0][1].tolist() == observables.tolist()
        assert np.array_equal(found["pubs"][0][2], pubs[0][2])
        assert found["pubs"][1] == pubs[1]


@pytest.mark.parametrize("value", [{1, 2}, 1j, np.array(["linear"]).tolist()])
def test_other_types_are_left_to_qiskits_own(value):
    text = json.dumps({"a": value}, cls=RuntimeEncoder)

    assert decode(text) == json.loads(text, cls=RuntimeDecoder)


def test_a_worker_is_ready_without_qiskit_ibm_runtime():
    """Its import takes longer than all others together, and each emulated QPU waits for it."""
    program = (
        "import sys; from qrmi_workflows.emulator.simulators import load_simulator; "
        "load_simulator('aer'); print('qiskit_ibm_runtime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )

    assert done.stdout == "False\n"
