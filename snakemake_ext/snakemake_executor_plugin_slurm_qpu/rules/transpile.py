"""A circuit on a QPU's own qubits and gates, as a payload for the sampler or the estimator."""

import json
from pathlib import Path
from typing import Any

from qiskit import QuantumCircuit, generate_preset_pass_manager, qasm3
from qiskit.quantum_info import SparsePauliOp

from qrmi_workflows.vendors.ibm import transpiler_target


def transpile(circuit: QuantumCircuit, target: str) -> QuantumCircuit:
    """Return a circuit for a QPU, placed on its best qubits."""
    manager = generate_preset_pass_manager(
        optimization_level=3, target=transpiler_target(target), seed_transpiler=1
    )
    return manager.run(circuit)


def sampler_pub(circuit: QuantumCircuit, shots: int) -> list[Any]:
    """Return a PUB of the sampler."""
    return [_text(circuit), [], shots]


def estimator_pub(circuit: QuantumCircuit, observables: Any, precision: float) -> list[Any]:
    """Return a PUB of the estimator: observables on the circuit's own qubits, one or a list."""
    return [_text(circuit), _placed(observables, circuit), [], precision]


def payload(program: str, pub: list[Any]) -> dict[str, Any]:
    """Return the payload of one PUB."""
    parameters = {"pubs": [pub], "version": 2, "options": {}, "support_qiskit": True}
    return {"program_id": program, "parameters": parameters}


def _placed(observables: Any, circuit: QuantumCircuit) -> Any:
    if isinstance(observables, list):
        return [_placed(each, circuit) for each in observables]
    placed = SparsePauliOp.from_list(observables.items()).apply_layout(circuit.layout)
    return {pauli: coefficient.real for pauli, coefficient in placed.to_list()}


def _text(circuit: QuantumCircuit) -> str:
    text: str = qasm3.dumps(
        circuit,
        disable_constants=True,
        allow_aliasing=True,
        experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1,
    )
    return text


def _main(rule: Any) -> None:
    texts = {name: Path(path).read_text(encoding="utf-8") for name, path in rule.input.items()}
    circuit, target = qasm3.loads(texts["circuit"]), texts["target"]
    if "observables" in texts:
        # The estimator measures for itself, and a measured state is no longer the circuit's.
        measured = circuit.remove_final_measurements(inplace=False)
        observables = json.loads(texts["observables"])
        pub = estimator_pub(transpile(measured, target), observables, rule.params.precision)
        content = payload("estimator", pub)
    else:
        content = payload("sampler", sampler_pub(transpile(circuit, target), rule.params.shots))
    Path(rule.output[0]).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    _main(snakemake)  # type: ignore[name-defined]  # noqa: F821 - Snakemake gives it to its scripts
