"""The circuit whose samples say which determinants matter, transpiled for the QPU.

Qubits 0 to 9 are the orbitals of the electrons with spin up, 10 to 19 those with spin down. In a
singlet near its equilibrium, electrons mostly hop in pairs, and a pair in an orbital needs one
qubit (Elfving et al., Phys. Rev. A 103, 032605 (2021)). So the circuit moves pairs among the first
ten qubits, then copies these to the others: a few gates where general excitations need hundreds.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from qiskit import QuantumCircuit, generate_preset_pass_manager, qpy
from qiskit.circuit.library import XXPlusYYGate

from qrmi_workflows.vendors.ibm import transpiler_target


def ansatz(pairs: np.ndarray) -> QuantumCircuit:
    """Return the circuit, with each pair's hop from orbital i to orbital a as likely as |t[i,a]|.

    Coupled cluster gives that hop the amplitude t, hence the probability t². The samples only
    choose determinants, whose weights are found classically, so rarer ones are made more frequent.
    """
    full, empty = pairs.shape
    orbitals = full + empty
    circuit = QuantumCircuit(2 * orbitals)
    circuit.x(range(full))
    for i, a in product(range(full), range(empty)):
        angle = 2 * np.arctan(np.sqrt(abs(pairs[i, a])))
        circuit.append(XXPlusYYGate(angle, -np.pi / 2), [i, full + a])
    circuit.cx(range(orbitals), range(orbitals, 2 * orbitals))
    circuit.measure_all()
    return circuit


def transpile(molecule: Mapping[str, Any], target: str) -> QuantumCircuit:
    """Return the molecule's circuit in a QPU's native gates, on its best qubits."""
    manager = generate_preset_pass_manager(
        optimization_level=3, target=transpiler_target(target), seed_transpiler=1
    )
    return manager.run(ansatz(molecule["pairs"]))


def save(circuit: QuantumCircuit, path: Path) -> None:
    with path.open("wb") as stream:
        qpy.dump(circuit, stream)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    target = Path(rule.input[1]).read_text(encoding="utf-8")
    save(transpile(np.load(rule.input[0]), target), Path(rule.output[0]))
