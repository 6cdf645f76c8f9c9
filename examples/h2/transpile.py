"""Build one payload from the ansatz, transpiled for the QPU, and every Hamiltonian."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrogen import ANGLES, ansatz
from qiskit import QuantumCircuit, generate_preset_pass_manager, qasm3
from qiskit.quantum_info import SparsePauliOp

from qrmi_workflows.vendors.ibm import transpiler_target


def transpile(target: str) -> QuantumCircuit:
    """Return the ansatz in a QPU's native gates, on its best qubits."""
    manager = generate_preset_pass_manager(
        optimization_level=3, target=transpiler_target(target), seed_transpiler=1
    )
    return manager.run(ansatz())


def place(operator: SparsePauliOp, circuit: QuantumCircuit) -> dict[str, float]:
    """Return an observable on the qubits of a transpiled circuit."""
    terms = operator.apply_layout(circuit.layout).to_list()
    return {pauli: coefficient.real for pauli, coefficient in terms}


def estimator_payload(
    circuit: QuantumCircuit, observables: Any, angles: Iterable[float], precision: float
) -> dict[str, Any]:
    """Return a payload with one PUB: every observable at every angle, broadcast as in NumPy."""
    text = qasm3.dumps(
        circuit,
        disable_constants=True,
        allow_aliasing=True,
        experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1,
    )
    pub = [text, observables, [[angle] for angle in angles], precision]
    parameters = {"pubs": [pub], "version": 2, "options": {}, "support_qiskit": True}
    return {"program_id": "estimator", "parameters": parameters}


def curve_payload(molecules: Sequence[Mapping[str, Any]], target: str, precision: float) -> Any:
    """Return the payload whose result has an energy for each molecule (row) and angle (column)."""
    circuit = transpile(target)
    operators = [SparsePauliOp.from_list(molecule["hamiltonian"].items()) for molecule in molecules]
    column = [[place(operator, circuit)] for operator in operators]
    return estimator_payload(circuit, column, ANGLES, precision)


if __name__ == "__main__":
    rule = snakemake  # noqa: F821 - Snakemake defines this name in its scripts
    hamiltonians, target = (Path(path).read_text(encoding="utf-8") for path in rule.input)
    molecules = json.loads(hamiltonians)["molecules"]
    payload = curve_payload(molecules, target, rule.params.precision)
    Path(rule.output[0]).write_text(json.dumps(payload), encoding="utf-8")
