"""Measure the magnetisation of a kicked Ising chain over the kick angle, on all of a QPU's lanes.

Each angle is a separate task, and the QPU has as many tasks at once as it has lanes. The model is
that of Kim et al., Nature 618, 500 (2023), on a chain short enough to solve exactly.

    qpu target ibm_fez -o fez.json
    python ising.py fez.json -o ising.json
"""

from __future__ import annotations

import argparse
import json
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from parsl.dataflow.futures import AppFuture
from qiskit import QuantumCircuit, generate_preset_pass_manager, qpy
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector

from parsl_ext import qpu_config, run_payload
from qrmi_workflows import Payload, QuantumResult
from qrmi_workflows.vendors.ibm import transpiler_target

SPINS = 10
KICKS = 4
ANGLES = np.linspace(0, pi / 2, 12).tolist()
PRECISION = 0.01
MAGNETISATION = SparsePauliOp.from_sparse_list(
    [("Z", [spin], 1 / SPINS) for spin in range(SPINS)], num_qubits=SPINS
)


def kicked_chain() -> QuantumCircuit:
    """Return the time evolution of a chain whose spins all start up."""
    circuit, angle = QuantumCircuit(SPINS), Parameter("θ")
    for _ in range(KICKS):
        circuit.rx(angle, range(SPINS))
        for first in (0, 1):  # the even couplings, then the odd ones
            for spin in range(first, SPINS - 1, 2):
                circuit.rzz(-pi / 2, spin, spin + 1)
    return circuit


def transpile(circuit: QuantumCircuit, target: str) -> QuantumCircuit:
    """Return the circuit in a QPU's native gates, on its best qubits."""
    manager = generate_preset_pass_manager(
        optimization_level=3, target=transpiler_target(target), seed_transpiler=1
    )
    return manager.run(circuit)


def sweep(circuit: QuantumCircuit, file: Path) -> list[AppFuture]:
    """Start one task for each angle, all with the same circuit file."""
    with file.open("wb") as stream:
        qpy.dump(circuit, stream)
    terms = MAGNETISATION.apply_layout(circuit.layout).to_list()
    observable = {pauli: weight.real for pauli, weight in terms}
    return [
        run_payload(
            Payload.from_file(
                file, observables=observable, parameter_values=[angle], precision=PRECISION
            )
        )
        for angle in ANGLES
    ]


def row(angle: float, result: QuantumResult) -> dict[str, Any]:
    """Return the measured and the exact magnetisation at an angle."""
    state = Statevector(kicked_chain().assign_parameters([angle]))
    return {
        "angle": angle,
        "magnetisation": result.expectation_values()[0],
        "exact": float(state.expectation_value(MAGNETISATION).real),
        "task": result.task_id,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the QPU's target, from `qpu target`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--qpu", default="ibm_fez")
    parser.add_argument("--lanes", type=int, help="tasks at once (default: site policy)")
    parser.add_argument("--address", help="this machine's address as seen from the block")
    parser.add_argument("--local", action="store_true", help="run without Slurm")
    arguments = parser.parse_args()
    circuit = transpile(kicked_chain(), arguments.target.read_text(encoding="utf-8"))
    config = qpu_config(
        arguments.qpu,
        local=arguments.local,
        lanes=arguments.lanes,
        address=arguments.address,
        run_dir=str(arguments.output.parent / "parsl"),
    )
    with parsl.load(config):
        tasks = sweep(circuit, arguments.output.with_suffix(".qpy"))
        rows = [row(angle, task.result()) for angle, task in zip(ANGLES, tasks, strict=True)]
    arguments.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
