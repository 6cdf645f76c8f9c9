"""The calibrated noise and the native gates of an emulated QPU are those of its model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from emulator_clients import bell, estimate, primitive, sample, wait
from qiskit import ClassicalRegister, QuantumCircuit, qasm3, transpile
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime.json import RuntimeEncoder
from qrmi import Payload, TaskStatus
from qrmi.primitives.ibm import get_backend


def noisy_bell(resource) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    return transpile(circuit, get_backend(resource), initial_layout=[100, 110], seed_transpiler=1)


def measured(isa: QuantumCircuit) -> QuantumCircuit:
    """Measure the two qubits in use."""
    circuit = isa.copy()
    circuit.add_register(ClassicalRegister(2, "meas"))
    circuit.measure([100, 110], [0, 1])
    return circuit


def test_noise_is_the_backends_own(qpu):
    """Counts agree with a simulation of the whole device's noise, which takes far longer."""
    from qiskit_aer.noise import NoiseModel
    from qiskit_aer.primitives import SamplerV2
    from qiskit_ibm_runtime.fake_provider import FakeBrisbane

    resource = qpu("ibm_noisy")
    isa = noisy_bell(resource)
    isa = measured(isa)
    counts = sample(resource, qasm3.dumps(isa), None, 20000).meas.get_counts()
    options = {"noise_model": NoiseModel.from_backend(FakeBrisbane()), "method": "density_matrix"}
    whole = SamplerV2(seed=1, options={"backend_options": options}).run([isa], shots=20000)
    expected = whole.result()[0].data.meas.get_counts()
    for outcome in ("00", "01", "10", "11"):
        spread = 5 * np.sqrt(2 * max(expected.get(outcome, 0), 20))
        assert abs(counts.get(outcome, 0) - expected.get(outcome, 0)) < spread
    assert counts["01"] + counts["10"] > 100


def test_noisy_estimates_are_damped_but_close(qpu):
    """The XX, YY and ZZ terms of a Bell pair are measured with noisy gates and readout."""
    resource = qpu("ibm_noisy")
    isa = noisy_bell(resource)
    operators = [SparsePauliOp(label).apply_layout(isa.layout) for label in ("XX", "YY", "ZZ")]
    observables = [{operator.paulis[0].to_label(): 1.0} for operator in operators]
    data = estimate(resource, qasm3.dumps(isa), observables, [], 0.01)
    assert np.all(np.abs(data.evs - [1, -1, 1]) < 0.2)
    assert np.all(np.abs(data.evs) < 0.995)
    assert np.all(data.stds < 0.01)


@pytest.mark.parametrize("gate", ["h", "cx", "ryy in a condition"])
def test_circuits_in_qpy_that_are_not_isa_are_refused_as_ibm_refuses_them(qpu, gate):
    """IBM's code for them is 1517; gates inside conditions count too."""
    circuit = QuantumCircuit(2, 1)
    if gate == "h":
        circuit.h(0)
    elif gate == "cx":
        circuit.cx(0, 1)
    else:
        with circuit.if_test((circuit.clbits[0], 0)):
            circuit.ryy(0.5, 0, 1)
    circuit.measure(0, 0)
    document = {"pubs": [[circuit]], "version": 2}
    payload = Payload.QiskitPrimitive(
        input=json.dumps(document, cls=RuntimeEncoder), program_id="sampler"
    )
    resource = qpu("ibm_fez")
    task = resource.task_start(payload)
    assert wait(resource, task) == TaskStatus.Failed
    logs = resource.task_logs(task)
    assert "do not match the target definition (non-ISA circuits)" in logs
    assert "error_codes#1517" in logs


@pytest.mark.parametrize("name", ["ibm_noisy", "ibm_strict"])
def test_noise_and_strictness_need_the_devices_own_instructions(qpu, name):
    """A circuit that was not transpiled fails, as with the vendor."""
    resource = qpu(name)
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert wait(resource, task) == TaskStatus.Failed
    assert "Transpile your circuits" in resource.task_logs(task)


def test_fractional_gates_are_native_within_their_range(qpu):
    """As IBM's Heron QPUs have them: rx of any angle, rzz from 0 to π/2."""
    resource = qpu("ibm_strict")
    circuit = QuantumCircuit(2)
    circuit.rx(0.3, 0)
    circuit.rzz(np.pi / 2, 0, 1)
    circuit.measure_all()
    sample(resource, qasm3.dumps(circuit), None, 5)
    circuit.rzz(-0.1, 0, 1)
    task = resource.task_start(primitive("sampler", [[qasm3.dumps(circuit)]]))
    assert wait(resource, task) == TaskStatus.Failed
    assert "only for angles in the range [0, pi/2], but an angle (-0.1)" in (
        resource.task_logs(task)
    )
