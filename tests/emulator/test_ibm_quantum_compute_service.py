"""IBM Quantum Compute Service, through the real `qrmi` client."""

from __future__ import annotations

import json

import numpy as np
import pytest
from emulator_clients import ask, bell, ibm_headers, primitive, run, wait
from qiskit import QuantumCircuit, qasm3, transpile
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qrmi import InvalidInputError, ResourceStatusCode, TaskNotFoundError, TaskStatus
from qrmi.primitives.ibm import EstimatorV2, SamplerV2, get_backend


def test_every_method_of_a_resource(qpu):
    """Every method in QRMI's table works: status, target, lease, task, logs and metadata."""
    resource = qpu("ibm_quick")
    with pytest.deprecated_call():
        assert resource.is_accessible()
    assert resource.status().status == ResourceStatusCode.Online
    target = json.loads(resource.target().value)
    assert target["configuration"]["backend_name"] == "ibm_quick"
    assert len(target["properties"]["qubits"]) == target["configuration"]["n_qubits"] == 156
    token = resource.acquire()
    assert resource.metadata()["session_id"] == token
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert wait(resource, task) == TaskStatus.Completed
    assert resource.task_result(task).value
    assert isinstance(resource.task_logs(task), str)
    resource.task_stop(task)
    resource.release(token)
    assert "session_id" not in resource.metadata()
    assert resource.resource_id() == "ibm_quick"


@pytest.mark.parametrize("path", ["/backends", "/backends/ibm_fez/configuration", "/jobs"])
def test_the_version_may_be_part_of_the_path(emulator, path):
    """Upstream's generators of payloads call `{endpoint}/v1/backends`, its client `/backends`."""
    headers, base = ibm_headers(emulator), "/ibm-quantum-compute-service"

    plain, versioned = (
        ask(emulator, "GET", f"{base}{prefix}{path}", headers=headers) for prefix in ("", "/v1")
    )
    assert versioned == plain
    assert versioned[0] == 200


def test_bell_state_through_the_primitives(qpu):
    """A Bell pair transpiled to a device of 156 qubits has both outcomes and no others."""
    resource = qpu("ibm_fez")
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    isa = transpile(circuit, get_backend(resource), initial_layout=[140, 141])
    counts = SamplerV2(resource).run([isa], shots=2000).result()[0].data.meas.get_counts()
    assert set(counts) == {"00", "11"}
    assert abs(counts["00"] - 1000) < 5 * np.sqrt(500)


def test_estimates_with_shot_noise_lie_within_five_standard_errors(qpu):
    """Parameters and observables broadcast, and the returned standard errors are realistic."""
    resource = qpu("ibm_fez")
    theta = ParameterVector("θ", 12)
    circuit = QuantumCircuit(3)
    for rank in range(12):
        circuit.ry(theta[rank], rank % 3)
        circuit.cx(rank % 3, (rank + 1) % 3)
    isa = transpile(circuit, get_backend(resource), initial_layout=[7, 6, 5], seed_transpiler=1)
    operators = [
        SparsePauliOp.from_list([("ZZI", 1.0), ("IXX", 0.5), ("YIY", -0.25)]),
        SparsePauliOp("ZZZ"),
    ]
    observables = [[operator.apply_layout(isa.layout)] for operator in operators]
    values = np.random.default_rng(5).uniform(-np.pi, np.pi, (4, 12))
    result = EstimatorV2(resource).run([(isa, observables, values)], precision=0.02).result()[0]
    exact = [
        [Statevector(circuit.assign_parameters(row)).expectation_value(item).real for row in values]
        for item in operators
    ]
    assert result.data.evs.shape == result.data.stds.shape == (2, 4)
    assert np.all(np.abs(result.data.evs - exact) < 5 * result.data.stds)
    assert np.any(np.abs(result.data.evs - exact) > 1e-6)
    assert np.all(result.data.stds < 0.02 * 1.2)


def test_estimates_with_precision_0_are_exact(qpu):
    """Observables may act on idle qubits, which are in state 0."""
    circuit = QuantumCircuit(2)
    circuit.ry(0.4, 0)
    circuit.cx(0, 1)
    pub = [qasm3.dumps(circuit), {"IIZZ": 1.0, "ZZII": 0.5, "IIXX": 1.0, "XIII": 7.0}, [], 0]
    result = ResultDecoder.decode(run(qpu("ibm_fez"), primitive("estimator", [pub])))[0]
    assert result.data.evs == pytest.approx(1.0 + 0.5 + np.sin(0.4), abs=1e-12)
    assert result.data.stds == 0


def test_an_unsupported_circuit_fails_with_the_reason_in_the_logs(qpu):
    """The request is accepted and the task fails, as with the vendor."""
    resource = qpu("ibm_fez")
    task = resource.task_start(primitive("sampler", [["OPENQASM 3.0; nonsense;"]]))
    assert wait(resource, task) == TaskStatus.Failed
    assert "not OpenQASM 3" in resource.task_logs(task)


def test_bad_requests_raise_qrmis_own_exceptions(qpu, emulator):
    """QRMI recognises the error documents for an unknown task and an empty input."""
    resource = qpu("ibm_fez")
    with pytest.raises(TaskNotFoundError):
        resource.task_status("unknown")
    with pytest.raises(InvalidInputError, match="at least one PUB"):
        resource.task_start(primitive("sampler", []))
