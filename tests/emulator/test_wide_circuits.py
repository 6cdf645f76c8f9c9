"""Circuits as wide as a QPU, as QRMI's examples send them, end soon or are refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator_clients import connect, primitive, wait
from qiskit import QuantumCircuit, qasm3, transpile
from qiskit.circuit.library import efficient_su2, qaoa_ansatz
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime.fake_provider import FakeFez, FakeTorino
from qrmi import TaskStatus

from qrmi_workflows.emulator import start_emulator
from qrmi_workflows.emulator.simulators import aer

CONFIG = """
simulation_seconds = 1
[qpus.ibm_torino]
type = "ibm-quantum-system"
model = "torino"
"""


def work(program: str, pub: list[Any], model: str) -> dict[str, Any]:
    """Return what the emulator hands to a simulator."""
    request = json.dumps({"pubs": [pub], "version": 2})
    settings = {"noise": False, "exact": False, "strict": True}
    return {"program": program, "request": request, "seed": 1, "model": model, **settings}


def interactions(target: Any) -> SparsePauliOp:
    """Return an Ising model on all couplers of a device."""
    edges = {tuple(sorted(edge)) for edge in target.build_coupling_map().get_edges()}
    terms = [("ZZ", edge, 0.5) for edge in sorted(edges)]
    return SparsePauliOp.from_sparse_list(terms, num_qubits=target.num_qubits)


@pytest.mark.slow
def test_a_sampler_of_127_qubits():
    """A chain of gates on qubits that lie scattered on the device, with many parameters."""
    chain = efficient_su2(127, entanglement="linear")
    chain.measure_all()
    isa = transpile(chain, target=FakeFez().target, optimization_level=1, seed_transpiler=1)
    values = np.random.default_rng(1).uniform(0, 1, isa.num_parameters)
    pub = [qasm3.dumps(isa, allow_aliasing=True), values.tolist(), 10000]
    data = json.loads(aer.run(work("sampler", pub, "fez"))["result"])["results"][0]["data"]
    assert len(data["meas"]["samples"]) == 10000


def test_scattered_qubits_of_a_chain_have_their_own_values():
    """Each qubit has another angle, so that an exchange would show."""
    places = list(np.random.default_rng(3).permutation(60)[:30])
    circuit = QuantumCircuit(60)
    angles = np.linspace(0.1, 1.5, 30)
    for place, angle in zip(places, angles, strict=True):
        circuit.ry(angle, int(place))
    for one, other in itertools.pairwise(places):
        circuit.cz(int(one), int(other))
    labels = ["I" * (59 - int(place)) + "Z" + "I" * int(place) for place in places]
    pub = [qasm3.dumps(circuit), labels, None, 0]
    job = work("estimator", pub, "fez") | {"strict": False}
    result = json.loads(aer.run(job)["result"])["results"][0]
    assert result["data"]["evs"] == pytest.approx(np.cos(angles), abs=1e-6)


def entangled(width: int) -> QuantumCircuit:
    """Return a circuit of few gates that no method simulates within seconds."""
    circuit = QuantumCircuit(width)
    random = np.random.default_rng(1)
    for _ in range(12):
        for qubit in range(width):
            circuit.ry(random.uniform(0.5, 2), qubit)
        order = random.permutation(width)
        for one, other in zip(order[::2], order[1::2], strict=False):
            circuit.cx(int(one), int(other))
    return circuit


def require_refusal(tmp_path: Path, pub: list[Any], *, strict: bool) -> None:
    """Check that a simulation is stopped, that the reason says what to do, and what comes next."""
    config = tmp_path / "emulator.toml"
    config.write_text(f"{CONFIG}strict = {str(strict).lower()}\n")
    with start_emulator(tmp_path / "state", config=config) as emulator:
        resource = connect(emulator, "ibm_torino", QRMI_JOB_TIMEOUT_SECONDS="600")
        task = resource.task_start(primitive("estimator", [pub]))
        assert wait(resource, task) == TaskStatus.Failed
        logs = resource.task_logs(task)
        assert "stopped after 1 s of computing time" in logs
        assert "Use fewer qubits or layers" in logs
        small = ["OPENQASM 3.0; bit[1] c; c[0] = measure $0;", None, 1]
        following = resource.task_start(primitive("sampler", [small]))
        assert wait(resource, following) == TaskStatus.Completed


def test_a_circuit_that_takes_too_long_is_refused_with_the_reason(tmp_path):
    """The QPU then runs its next task."""
    require_refusal(tmp_path, [qasm3.dumps(entangled(40)), "Z" * 40, None, 0], strict=False)


@pytest.mark.slow
def test_an_estimator_that_entangles_133_qubits_is_refused(tmp_path):
    """QAOA on all couplers of a device, as in QRMI's example."""
    target = FakeTorino().target
    observable = interactions(target)
    ansatz = qaoa_ansatz(observable, reps=2)
    isa = transpile(ansatz, target=target, optimization_level=1, seed_transpiler=1)
    terms = dict(observable.apply_layout(isa.layout).to_list())
    observables = {label: value.real for label, value in terms.items()}
    require_refusal(tmp_path, [qasm3.dumps(isa), observables, [0.9] * 4], strict=True)
