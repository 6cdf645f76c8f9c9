"""IBM's results are the same numbers for each kind of server, in each encoding.

IBM answers in plain JSON unless the payload sets `support_qiskit`. Upstream's generators of
payloads set it to false, and many programs leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulator_clients import connect, primitive, run
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import ParameterVector
from servers import RESULT_SETTINGS, servers, to_toml

from qrmi_workflows import open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.vendors.metering import reported_seconds
from qrmi_workflows.vendors.registry import load_vendor

TYPES = {"compute": "ibm-quantum-compute-service", "system": "ibm-quantum-system"}
SERVERS = {
    f"{name}_{'_'.join(server) or 'default'}": (type_, server)
    for name, type_ in TYPES.items()
    for server in servers(type_, results=True)
    if set(server) <= RESULT_SETTINGS
}
# Shot n of `evs` is 01 or 11; `flag` is always 1.
FLIP = """OPENQASM 3.0;
include "stdgates.inc";
input float theta;
bit[2] evs;
bit[1] flag;
x $0;
rx(theta) $1;
evs[0] = measure $0;
evs[1] = measure $1;
flag[0] = measure $0;
"""
TURN = 'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float theta;\nrx(theta) $0;\nx $1;\n'
ANGLES = [[[0.0], [np.pi], [0.0]], [[np.pi], [np.pi], [0.0]]]


@pytest.fixture(scope="module")
def ibm(tmp_path_factory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("encodings")
    (folder / "emulator.toml").write_text(
        "".join(
            f'[qpus.{name}]\ntype = "{type_}"\nexact = true\nserver = {to_toml(server)}\n'
            for name, (type_, server) in SERVERS.items()
        )
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def lease_of(ibm, tmp_path, monkeypatch):
    monkeypatch.setenv("QPU_CONFIG", str(ibm.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return open_lease


def payload(program: str, pubs: list[Any], asks: bool | None) -> dict[str, Any]:
    parameters = {"version": 2, "pubs": pubs}
    if asks is not None:
        parameters["support_qiskit"] = asks
    return {"program_id": program, "parameters": parameters}


@pytest.mark.parametrize("asks", [None, False, True])
@pytest.mark.parametrize("qpu", SERVERS)
def test_counts_and_estimates_are_the_same(lease_of, qpu, asks):
    single = [FLIP, [np.pi], 30]
    with lease_of(qpu) as lease:
        sampled = lease.run(payload("sampler", [[FLIP, ANGLES, 20], single], asks))
        estimated = lease.run(payload("estimator", [[TURN, ["IZ", "ZI"], [np.pi]]], asks))

    counts = [[{"01": 20}, {"11": 20}, {"01": 20}], [{"11": 20}, {"11": 20}, {"01": 20}]]
    assert sampled.counts("evs") == counts
    assert sampled.counts("flag") == [[{"1": 20}] * 3] * 2
    assert sampled.counts("evs", pub=1) == {"11": 30}
    assert sampled.to_numpy()["evs"].shape == (2, 3, 20, 2)
    converted = sampled.to_primitive_result()
    assert converted[0].data.evs.shape == (2, 3)
    assert converted[0].data.evs.get_counts((1, 2)) == {"01": 20}
    values, _ = estimated.expectation_values()
    assert values == pytest.approx([-1.0, -1.0])
    assert estimated.to_primitive_result()[0].data.evs == pytest.approx([-1.0, -1.0])


@pytest.mark.parametrize("qpu", SERVERS)
def test_values_arrive_at_their_parameters(lease_of, qpu):
    """Of the exported names of a vector, `_θ_10_` comes before `_θ_2_`; `b` is declared before `a`.

    Bit n is set if its qubit has been turned by π, by the value for the nth parameter.
    """
    circuit = QuantumCircuit(12, 12)
    for qubit, angle in enumerate(ParameterVector("θ", 12)):
        circuit.rx(angle, qubit)
    circuit.measure(range(12), range(12))
    exported = qasm3.dumps(circuit, disable_constants=True)
    declared = (
        'OPENQASM 3.0; include "stdgates.inc"; bit[2] c; input float b; input float a;'
        "rx(b) $0; rx(a) $1; c[0] = measure $0; c[1] = measure $1;"
    )
    turns = [0, 0, np.pi, 0, 0, 0, 0, 0, 0, 0, 0, np.pi]
    with lease_of(qpu) as lease:
        ran = lease.run(payload("sampler", [[exported, turns, 5], [declared, [np.pi, 0], 5]], True))
        job = lease.sampler().run([(circuit, turns)], shots=5)

        assert ran.counts() == job.result()[0].data.c.get_counts() == {"100000000100": 5}
        assert ran.counts(pub=1) == {"01": 5}


@pytest.mark.parametrize("qpu", [name for name, (_, server) in SERVERS.items() if not server])
def test_the_emulator_answers_as_ibm_does(ibm, qpu):
    resource = connect(ibm, qpu)
    pubs = [[FLIP, [0.0], 2]]

    for asks in (False, None):
        text = run(resource, primitive("sampler", pubs, support_qiskit=asks))
        document = json.loads(text)
        assert document["results"][0]["data"] == {
            "evs": {"samples": ["0x1", "0x1"], "num_bits": 2},
            "flag": {"samples": ["0x1", "0x1"], "num_bits": 1},
        }
        assert document["metadata"]["execution"]["execution_spans"][0][2] == {
            "0": [[2], [0, 1], [0, 2]]
        }
    text = run(resource, primitive("sampler", pubs, support_qiskit=True))
    assert json.loads(text)["__type__"] == "PrimitiveResult"


@pytest.mark.parametrize("qpu", [name for name, (_, server) in SERVERS.items() if not server])
@pytest.mark.parametrize("asks", [True, False])
def test_results_say_for_how_long_the_qpu_executed_the_task(ibm, qpu, asks):
    """As the service's do, in both encodings; estimates have no spans."""
    text = run(connect(ibm, qpu), primitive("sampler", [[FLIP, [0.0], 2]], support_qiskit=asks))

    seconds = reported_seconds(load_vendor("ibm"), text)

    assert seconds is not None
    tasks = ibm.billing()["qpus"][qpu]["tasks"]
    assert seconds == pytest.approx(tasks[-1]["qpu_seconds"], abs=1e-5)
