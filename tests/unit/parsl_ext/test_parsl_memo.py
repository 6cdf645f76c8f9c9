"""Memoisation: equal values are recognised in any process, and different ones are told apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import parsl
import pulser
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.data_provider.files import File
from parsl.dataflow.memoization import id_for_memo
from parsl.executors import ThreadPoolExecutor
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter
from qiskit.circuit.library import PauliEvolutionGate, XGate
from qiskit.quantum_info import SparsePauliOp

from parsl_ext import QPUMemoizer, register_memo_types
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_memo_types()


def circuit(*, phase: float = 0.0, register: str = "meas", control: int = 1) -> QuantumCircuit:
    qubits, bits = QuantumRegister(2), ClassicalRegister(2, register)
    made = QuantumCircuit(qubits, bits, global_phase=phase)
    made.h(0)
    made.append(XGate().control(1, ctrl_state=control), [0, 1])
    made.measure(qubits, bits)
    return made


def parametrised(name: str, factor: float = 2.0) -> QuantumCircuit:
    made = QuantumCircuit(1)
    made.rx(factor * Parameter(name) + 1, 0)
    return made


def evolved(label: str) -> QuantumCircuit:
    """Return a circuit whose gate has an operator that its parameters do not show."""
    made = QuantumCircuit(2)
    made.append(PauliEvolutionGate(SparsePauliOp(label), 0.3), [0, 1])
    return made


def with_custom_gate(angle: float) -> QuantumCircuit:
    """Return a circuit with a gate that Qiskit names differently each time."""
    inner = QuantumCircuit(2)
    inner.rx(angle, 0)
    made = QuantumCircuit(2)
    made.append(inner.to_gate(), [0, 1])
    return made


def dynamic(value: int) -> QuantumCircuit:
    made = QuantumCircuit(1, 1)
    made.measure(0, 0)
    with made.if_test((made.clbits[0], value)):
        made.x(0)
    return made


def delayed(unit: str) -> QuantumCircuit:
    made = QuantumCircuit(1)
    made.delay(10, 0, unit=unit)
    return made


def sequence(duration: int) -> pulser.Sequence:
    made = pulser.Sequence(pulser.Register({"a": (0.0, 0.0)}), pulser.AnalogDevice)
    made.declare_channel("ising", "rydberg_global")
    made.add(pulser.Pulse.ConstantPulse(duration, 1.0, 0.0, 0.0), "ising")
    return made


def payload(shots: int) -> Payload:
    text = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
    return Payload.from_content(
        {"program_id": "sampler", "parameters": {"pubs": [[text, [], shots]]}}
    )


def result(task: str) -> QuantumResult:
    return QuantumResult(
        qpu="q", type="ibm-quantum-system", program="sampler", task_id=task, payload_digest="0",
        submitted="a", completed="b", data=[], vendor_result="{}",
    )  # fmt: skip


def values() -> list[Any]:
    """Return new values, each different from all others."""
    return [
        circuit(),
        circuit(phase=0.5),
        circuit(register="other"),
        circuit(control=0),
        parametrised("a"),
        parametrised("b"),
        parametrised("a", 3.0),
        evolved("XX"),
        evolved("ZZ"),
        with_custom_gate(0.1),
        with_custom_gate(0.2),
        dynamic(0),
        dynamic(1),
        delayed("ns"),
        delayed("us"),
        SparsePauliOp(["XX", "ZZ"], [1, 2]),
        SparsePauliOp(["XX", "ZZ"], [1, 3]),
        sequence(100),
        sequence(200),
        payload(1),
        payload(2),
        result("1"),
        result("2"),
        np.arange(4),
        np.arange(4).reshape(2, 2),
        np.arange(4, dtype=float),
        np.float64(1.0),
        np.float64(2.0),
        b"a",
        b"b",
    ]


def test_different_values_have_different_identities() -> None:
    assert len({id_for_memo(value) for value in values()}) == len(values())


def test_equal_values_have_equal_identities() -> None:
    assert [id_for_memo(value) for value in values()] == [id_for_memo(value) for value in values()]


def identities() -> str:
    """Return one digest of the identities of all values."""
    return hashlib.sha256(b"".join(map(id_for_memo, values()))).hexdigest()


def test_equal_values_have_equal_identities_in_another_process() -> None:
    """Python hashes strings differently there."""
    code = "import test_parsl_memo as t; t.register_memo_types(); print(t.identities())"
    environ = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parent, env=environ,
    )  # fmt: skip

    assert done.stdout.strip() == identities()


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="ignore_for_cache"):
        id_for_memo(np.array([object()]))


def test_input_files_are_identified_by_content_and_output_files_by_path(tmp_path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("one")
    first, second = File(tmp_path / "a"), File(tmp_path / "b")

    assert id_for_memo(first) == id_for_memo(second)
    assert id_for_memo(first, output_ref=True) != id_for_memo(second, output_ref=True)
    before = id_for_memo(first)
    (tmp_path / "a").write_text("two")
    assert id_for_memo(first) != before


def test_an_app_that_opens_a_lease_itself_is_known_by_the_qpu_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread's executor knows no QPU: `open_lease()` in the app takes `$QPU_NAME`."""

    @python_app(cache=True)
    def run() -> str:
        return os.environ["QPU_NAME"]

    config = Config([ThreadPoolExecutor()], memoizer=QPUMemoizer(), run_dir=str(tmp_path))
    found = []
    with parsl.load(config):
        for name in ("emulated:fez", "ibm_fez", "emulated:fez"):
            monkeypatch.setenv("QPU_NAME", name)
            found.append(run().result())

    assert found == ["emulated:fez", "ibm_fez", "emulated:fez"]
