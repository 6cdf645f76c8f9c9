"""Samplers and estimators return the right numbers for every form of input that clients send."""

from __future__ import annotations

import json
import re

import numpy as np
import psutil
import pytest
from emulator_clients import bell, connect, estimate, primitive, run, sample, submit_raw, wait
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm3, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qiskit_ibm_runtime.json import RuntimeEncoder
from qrmi import Payload, TaskStatus
from qrmi.primitives.ibm import get_backend
from waiting import wait_until

from qrmi_workflows.emulator import start_emulator


@pytest.mark.parametrize("width", [20, 127])
def test_a_ghz_state_has_two_outcomes(qpu, width):
    """Aer uses a state vector for 20 qubits and the stabilizer formalism for 127."""
    resource = qpu("ibm_fez")
    circuit = qasm3.loads(bell(width))
    isa = transpile(circuit, get_backend(resource), optimization_level=1, seed_transpiler=1)
    counts = sample(resource, qasm3.dumps(isa), None, 1000).meas.get_counts()
    assert set(counts) == {"0" * width, "1" * width}
    assert abs(counts["0" * width] - 500) < 5 * np.sqrt(250)


def test_a_wide_circuit_of_arbitrary_angles(qpu):
    """Aer uses matrix product states for 60 qubits; each pair has a known expectation value."""
    circuit = QuantumCircuit(60)
    for qubit in range(0, 60, 2):
        circuit.ry(0.7, qubit)
        circuit.cx(qubit, qubit + 1)
    observable = {"I" * 58 + "ZZ": 1.0, "I" * 57 + "Z" + "II": 1.0}
    data = estimate(qpu("ibm_fez"), qasm3.dumps(circuit), observable, [], 0)
    assert data.evs == pytest.approx(1 + np.cos(0.7), abs=1e-6)


def test_parametrised_pubs_broadcast_over_many_values(qpu):
    """Values follow the order of declaration, even beyond the tenth parameter."""
    theta = ParameterVector("θ", 11)
    circuit = QuantumCircuit(11)
    for rank in range(11):
        circuit.rx(theta[rank], rank)
    circuit.measure_all()
    values = np.zeros((2, 3, 11))
    values[1, 2, 10] = values[0, 1, 2] = np.pi
    data = sample(qpu("ibm_fez"), qasm3.dumps(circuit), values.tolist(), 50)
    assert data.meas.shape == (2, 3)
    assert data.meas.get_counts((1, 2)) == {"1" + "0" * 10: 50}
    assert data.meas.get_counts((0, 1)) == {"00000000100": 50}
    assert data.meas.get_counts((0, 0)) == {"0" * 11: 50}


def test_one_parameter_with_a_plain_list_of_values(qpu):
    """For a circuit with one parameter, a list of numbers is a list of parameter sets."""
    angle = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    data = estimate(qpu("ibm_fez"), qasm3.dumps(circuit), "Z", [0.0, np.pi / 3, np.pi], 0)
    assert data.evs == pytest.approx([1.0, 0.5, -1.0])


def test_mid_circuit_measurement_several_registers_and_a_condition(qpu):
    """A measured bit controls an operation, and each register is returned under its name."""
    qubits = QuantumRegister(2, "q")
    first, second = ClassicalRegister(1, "first"), ClassicalRegister(2, "second")
    circuit = QuantumCircuit(qubits, first, second)
    circuit.h(0)
    circuit.measure(0, first[0])
    with circuit.if_test((first, 1)):
        circuit.x(1)
    circuit.reset(0)
    circuit.measure([0, 1], second)
    data = sample(qpu("ibm_fez"), qasm3.dumps(circuit), None, 400)
    one, two = data.first.get_bitstrings(), data.second.get_bitstrings()
    assert [item + "0" for item in one] == two
    assert {"0", "1"} == set(one)


@pytest.mark.parametrize("value", [0, 1, 2, 3])
def test_a_switch_as_qrmis_primitives_export_it(qpu, value):
    """The switch has a block with two labels, a nested switch on one bit, and a default."""
    circuit = QuantumCircuit(QuantumRegister(4, "q"), ClassicalRegister(2, "a"))
    circuit.add_register(ClassicalRegister(2, "b"))
    for bit in range(2):
        if value >> bit & 1:
            circuit.x(bit)
    circuit.measure([0, 1], [0, 1])
    with circuit.switch(circuit.cregs[0]) as case:
        with case(0, 1):
            circuit.x(2)
            with circuit.switch(circuit.clbits[0]) as inner:
                with inner(1):
                    circuit.x(3)
                with inner(0):
                    circuit.id(3)
        with case(2):
            circuit.x(3)
        with case(case.DEFAULT):
            circuit.id(3)
    circuit.measure([2, 3], circuit.cregs[1])
    text = qasm3.dumps(circuit, experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1)
    data = sample(qpu("ibm_fez"), text, None, 10)
    expected = {0: "01", 1: "11", 2: "10", 3: "00"}[value]
    assert data.b.get_counts() == {expected: 10}


def test_circuits_as_qpy_with_bindings(qpu):
    """qiskit-ibm-runtime's own client sends circuits in this form."""
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.sx(0)
    circuit.rz(angle, 0)
    circuit.sx(0)
    circuit.measure_all()
    document = {"pubs": [[circuit, [0.0], 20]], "version": 2, "support_qiskit": True}
    payload = Payload.QiskitPrimitive(
        input=json.dumps(document, cls=RuntimeEncoder), program_id="sampler"
    )
    data = ResultDecoder.decode(run(qpu("ibm_fez"), payload))[0].data
    assert data.meas.get_counts() == {"01": 20}


def test_a_dynamic_isa_circuit_in_qpy(qpu):
    """Conditions on qubits far apart on the device, one of which needs a route between them."""
    resource = qpu("ibm_fez")
    circuit = QuantumCircuit(QuantumRegister(3), ClassicalRegister(3, "c"))
    circuit.x(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)) as else_:
        circuit.cx(0, 2)
    with else_:
        circuit.x(1)
    circuit.measure([1, 2], [1, 2])
    isa = transpile(
        circuit, get_backend(resource), initial_layout=[100, 110, 120], seed_transpiler=1
    )
    document = {"pubs": [[isa, None, 20]], "version": 2, "support_qiskit": True}
    payload = Payload.QiskitPrimitive(
        input=json.dumps(document, cls=RuntimeEncoder), program_id="sampler"
    )
    data = ResultDecoder.decode(run(resource, payload))[0].data
    assert data.c.get_counts() == {"101": 20}


def test_default_shots_and_precision(qpu):
    """The order of precedence is the PUB, the input, the options, and IBM's default."""
    resource = qpu("ibm_fez")
    assert sample(resource, bell(), None, 7, shots=8).meas.num_shots == 7
    assert sample(resource, bell(), shots=8).meas.num_shots == 8
    assert sample(resource, bell(), options={"default_shots": 9}).meas.num_shots == 9
    assert sample(resource, bell()).meas.num_shots == 4096
    circuit = QuantumCircuit(1)
    circuit.h(0)
    text = qasm3.dumps(circuit)
    assert estimate(resource, text, "Z", [], 0.1).stds == pytest.approx(0.1, rel=0.1)
    assert estimate(resource, text, "Z", precision=0.05).stds == pytest.approx(0.05, rel=0.1)
    assert estimate(resource, text, "Z").stds == pytest.approx(1 / 64, rel=0.1)


RESET = """OPENQASM 3.0; include "stdgates.inc";
h $0; cx $0, $1; reset $0;
"""
LOOP = """OPENQASM 3.0; include "stdgates.inc"; bit[1] c;
for int i in [0:1] { sx $0; c[0] = measure $0; }
"""


@pytest.mark.parametrize("name", ["ibm_fez", "ibm_exact"])
@pytest.mark.parametrize(("text", "observable"), [(RESET, "ZI"), (LOOP, "Z")])
def test_estimates_of_random_states_are_means_over_shots(qpu, name, text, observable):
    """Half of a Bell pair after a reset of the other half, and a measurement inside a loop."""
    data = estimate(qpu(name), text, [observable, "I" * len(observable)], [], 0.02)
    assert abs(data.evs[0]) < 6 * data.stds[0]
    assert data.stds[0] == pytest.approx(0.02, rel=0.05)
    assert (data.evs[1], data.stds[1]) == (1, 0)


def test_terms_that_share_their_shots_are_correlated(qpu):
    """Z on each half of a Bell pair: the difference is always 0, the sum varies twice as much."""
    text = 'OPENQASM 3.0; include "stdgates.inc"; h $0; cx $0, $1; x $2; reset $2;'
    observables = [{"IIZ": 1, "IZI": -1}, {"IIZ": 1, "IZI": 1}]
    data = estimate(qpu("ibm_fez"), text, observables, [], 0.02)
    assert (data.evs[0], data.stds[0]) == (0, 0)
    assert data.stds[1] == pytest.approx(0.04, rel=0.05)


def test_a_reset_at_the_start_changes_nothing(qpu):
    """Programs often begin with one; the values stay exact."""
    text = 'OPENQASM 3.0; include "stdgates.inc"; reset $0; reset $1; ry(1.1) $0;'
    data = estimate(qpu("ibm_fez"), text, "IZ", [], 0)
    assert data.evs == pytest.approx(np.cos(1.1), abs=1e-12)


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        (0, "exact values cannot be computed"),
        (1e-4, "takes 100000000 shots.*at most 1000000 shots.*at least 0.001"),
    ],
)
def test_a_precision_that_takes_too_many_shots_is_refused(qpu, precision, reason):
    """The reason says what is possible."""
    resource = qpu("ibm_fez")
    task = resource.task_start(primitive("estimator", [[RESET, "ZI", [], precision]]))
    assert wait(resource, task) == TaskStatus.Failed
    assert re.search(reason, resource.task_logs(task))


def test_projectors_are_observables_too(qpu):
    """The schema allows 0, 1, + and -, on qubits in use and on idle ones."""
    circuit = QuantumCircuit(1)
    circuit.ry(np.pi / 3, 0)
    values = estimate(qpu("ibm_fez"), qasm3.dumps(circuit), ["I0", "I1", "0I", "+I", "1Z"], [], 0)
    assert values.evs == pytest.approx([0.75, 0.25, 1.0, 0.5, 0.0])


def test_a_qpu_that_is_exact_ignores_the_precision(qpu):
    """Chemistry examples compare their energies to the last digit."""
    circuit = QuantumCircuit(1)
    circuit.ry(1.1, 0)
    data = estimate(qpu("ibm_exact"), qasm3.dumps(circuit), "Z", [], 0.1)
    assert data.evs == pytest.approx(np.cos(1.1), abs=1e-12)


@pytest.mark.parametrize(
    ("program", "pub", "reason"),
    [
        ("sampler", [7], "must be OpenQASM 3"),
        ("sampler", [bell(), [[1.0]] * 3, 10, 4, 5], "must have 1 to 3"),
        ("sampler", ["OPENQASM 3.0; qubit q; pow(2) @ nope q;"], "not OpenQASM 3"),
        ("estimator", [bell(), "ABC"], "observables"),
        ("estimator", ["OPENQASM 3.0; include 'stdgates.inc'; x $5;", "ZZ"], "span the device"),
        ("executor", [bell()], "schema_version None is not emulated; must be one of: v0.1"),
        ("sampler", ["OPENQASM 3.0; include 'stdgates.inc'; x $156;"], "fez has 156 qubits"),
    ],
)
def test_unsupported_pubs_fail_with_a_reason(qpu, emulator, program, pub, reason):
    """The task is accepted and fails, and its logs have the reason."""
    resource = qpu("ibm_fez")
    task = submit_raw(emulator, program, {"pubs": [pub], "version": 2})
    assert wait(resource, task) == TaskStatus.Failed
    assert reason in resource.task_logs(task)


def heavy(width: int) -> str:
    """Return a circuit that entangles all its qubits, which is expensive with every method."""
    circuit = QuantumCircuit(width)
    random = np.random.default_rng(1)
    for _ in range(12):
        for qubit in range(width):
            circuit.ry(random.uniform(0.5, 2), qubit)
        order = random.permutation(width)
        for one, other in zip(order[::2], order[1::2], strict=False):
            circuit.cx(int(one), int(other))
    circuit.measure_all()
    return qasm3.dumps(circuit)


def busiest(emulator) -> psutil.Process:
    """Wait until a worker of Aer is busy, and return the one with the highest CPU usage."""
    # The workers of other simulators may be busy with their imports.
    workers = psutil.Process(emulator.process.pid).children()
    children = [worker for worker in workers if "aer" in worker.cmdline()]

    def busy() -> psutil.Process | None:
        running = [child for child in children if child.is_running()]
        shares = {child: child.cpu_percent(interval=0.1) for child in running}
        most = max(running, key=lambda child: shares[child])
        return most if shares[most] > 15 else None

    return wait_until(busy, "a busy worker")


def test_cancelling_a_running_task_ends_its_simulation(qpu, emulator):
    """The worker process exits, and the next task runs."""
    resource = qpu("ibm_fez")
    sample(resource, bell(), None, 1)
    task = resource.task_start(primitive("sampler", [[heavy(24), None, 1]]))
    worker = busiest(emulator)
    resource.task_stop(task)
    assert resource.task_status(task) == TaskStatus.Cancelled
    worker.wait(60)
    assert set(sample(resource, bell(), None, 100).meas.get_counts()) == {"00", "11"}


def test_a_circuit_beyond_the_memory_limit_fails_and_the_next_one_runs(tmp_path):
    """The limit applies to one worker and affects neither the emulator nor other tasks."""
    config = tmp_path / "emulator.toml"
    config.write_text("worker_memory_gib = 0.2\n[qpus.ibm]\ntype = 'ibm-quantum-compute-service'\n")
    with start_emulator(tmp_path / "state", config=config) as emulator:
        resource = connect(emulator, "ibm")
        task = resource.task_start(primitive("sampler", [[heavy(24), None, 1]]))
        assert wait(resource, task) == TaskStatus.Failed
        assert "memory" in resource.task_logs(task)
        assert set(sample(resource, bell(), None, 100).meas.get_counts()) == {"00", "11"}


def test_exact_values_of_a_random_circuit(qpu):
    """All Pauli terms of three qubits agree with the state vector."""
    circuit = QuantumCircuit(3)
    angles = np.random.default_rng(3).uniform(0, 6, 9)
    for rank, angle in enumerate(angles):
        circuit.u(angle, angle / 2, angle / 3, rank % 3)
        circuit.cx(rank % 3, (rank + 1) % 3)
    labels = [a + b + c for a in "IXYZ" for b in "IXYZ" for c in "IXYZ"]
    data = estimate(qpu("ibm_fez"), qasm3.dumps(circuit), labels, [], 0)
    state = Statevector(circuit)
    exact = [state.expectation_value(SparsePauliOp(label)).real for label in labels]
    assert data.evs == pytest.approx(exact, abs=1e-9)
