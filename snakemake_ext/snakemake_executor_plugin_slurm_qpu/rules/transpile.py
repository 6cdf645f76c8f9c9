"""The rules `transpile_*`: a circuit for a QPU's qubits and gates, as a payload for a primitive."""

import json
from pathlib import Path
from typing import Any

from qiskit import QuantumCircuit, generate_preset_pass_manager, qasm3
from qiskit.quantum_info import SparsePauliOp

from qrmi_workflows.vendors.ibm import transpiler_target
from qrmi_workflows.vendors.ibm.circuits import primitive_content, to_openqasm


def transpile(circuit: QuantumCircuit, target: str) -> QuantumCircuit:
    """Transpile a circuit for a QPU, and place it on the QPU's best qubits.

    Args:
        circuit: The circuit.
        target: The text of the QPU's target file.
    """
    # A fixed seed: a rerun must get the same payload, by which it finds its task in the journal.
    manager = generate_preset_pass_manager(
        optimization_level=3, target=transpiler_target(target), seed_transpiler=1
    )
    return manager.run(circuit)


def sampler_pub(circuit: QuantumCircuit, shots: int) -> list[Any]:
    """Build a PUB for the sampler."""
    return [to_openqasm(circuit), [], shots]


def estimator_pub(circuit: QuantumCircuit, observables: Any, precision: float) -> list[Any]:
    """Build a PUB for the estimator; observables are on the qubits before transpilation."""
    return [to_openqasm(circuit), _on_physical_qubits(observables, circuit), [], precision]


def _on_physical_qubits(observables: Any, circuit: QuantumCircuit) -> Any:
    # The transpiler has mapped the circuit's qubits to qubits of the QPU; observables must follow.
    if isinstance(observables, list):
        return [_on_physical_qubits(each, circuit) for each in observables]
    physical = SparsePauliOp.from_list(observables.items()).apply_layout(circuit.layout)
    return {pauli: coefficient.real for pauli, coefficient in physical.to_list()}


def _main(rule: Any) -> None:
    texts = {name: Path(path).read_text(encoding="utf-8") for name, path in rule.input.items()}
    circuit, target = qasm3.loads(texts["circuit"]), texts["target"]
    if "observables" in texts:
        # The estimator adds its own measurements. After those of the circuit, they would measure a
        # collapsed state.
        unmeasured = circuit.remove_final_measurements(inplace=False)
        observables = json.loads(texts["observables"])
        pub = estimator_pub(transpile(unmeasured, target), observables, rule.params.precision)
        content = primitive_content("estimator", [pub])
    else:
        pub = sampler_pub(transpile(circuit, target), rule.params.shots)
        content = primitive_content("sampler", [pub])
    Path(rule.output[0]).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    _main(snakemake)  # type: ignore[name-defined]  # noqa: F821 - Snakemake gives it to its scripts
