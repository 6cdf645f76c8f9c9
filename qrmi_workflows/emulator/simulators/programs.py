"""IBM's programs other than the primitives: `executor` and `noiselearner`.

The input and the result of an executor follow the schemas of ibm-quantum-schemas
(https://github.com/Qiskit/ibm-quantum-schemas); qiskit-ibm-runtime and samplomatic read and write
them. A noise learner's result is encoded by qiskit-ibm-runtime's `RuntimeEncoder`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import load_circuit, parameter_sets
from qrmi_workflows.emulator.simulators.sampling import derive_seed, sample_registers

__all__ = ["PROGRAMS"]

Prepare = Callable[[object, dict[str, Any]], tuple[Any, Any]]
"""Load a circuit, and choose how Aer simulates it."""


def _execute(work: dict[str, Any], prepare: Prepare) -> dict[str, Any]:
    from qiskit_ibm_runtime.quantum_program.params_converters import (
        QUANTUM_PROGRAM_PARAMS_CONVERTERS,
    )

    params = json.loads(work["request"])
    version = params.get("schema_version")
    if version not in QUANTUM_PROGRAM_PARAMS_CONVERTERS:
        raise SimulationError(
            f"schema_version {version!r} is not emulated; must be one of: "
            f"{', '.join(QUANTUM_PROGRAM_PARAMS_CONVERTERS)}"
        )
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[version]
    try:
        program, _ = converter.decoder(converter.model.model_validate(params))
    except Exception as error:  # pydantic's, QPY's and samplomatic's have no common base
        raise SimulationError(f"the quantum program cannot be decoded: {error}") from error
    if getattr(program, "meas_level", "classified") != "classified":
        raise SimulationError(
            f"meas_level {program.meas_level!r} is not emulated; must be 'classified'"
        )
    results = []
    for rank, item in enumerate(program.items):
        own = {**work, "seed": derive_seed(work["seed"], rank)}
        results.append(_run_item(item, program.shots, own, prepare))
    logs = f"{len(results)} items, {program.shots} shots\n"
    return {"result": _render(results, version, params), "logs": logs}


def _run_item(item: Any, shots: int, work: dict[str, Any], prepare: Prepare) -> dict[str, Any]:
    if hasattr(item, "samplex"):
        values, flips = _sample_samplex(item, work["seed"])
    else:
        values, flips = item.circuit_arguments, {}
    loaded, engine = prepare(item.circuit, work)
    # A circuit without parameters has no axis for them, or an empty one.
    bindings = parameter_sets(values if loaded.parameters else None, loaded.parameters)
    registers = sample_registers(loaded.circuit, bindings, shots, engine)
    measured = {
        name: bits.to_bool_array(order="little").reshape(*item.shape, shots, bits.num_bits)
        if loaded.parameters
        else bits.to_bool_array(order="little")
        for name, bits in registers.items()
    }
    return {**measured, **flips}


def _sample_samplex(item: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """Draw the parameter values of each element of an item, and the flips of its measurements."""
    import numpy as np

    random, drawn = np.random.default_rng(seed), []
    item.samplex.finalize()
    for index in np.ndindex(item.shape):
        arguments = {
            spec.name: _element(item.samplex_arguments[spec.name], spec, item.shape, index)
            for spec in item.samplex_arguments.specs
            if spec.name in item.samplex_arguments
        }
        drawn.append(item.samplex.sample(arguments, num_randomizations=1, rng=random))
    columns = {
        name: np.stack([np.asarray(each[name])[0] for each in drawn])
        for name in (drawn[0] if drawn else ())
        if name == "parameter_values" or name.startswith("measurement_flips")
    }
    shaped = {
        name: column.reshape(*item.shape, *column.shape[1:]) for name, column in columns.items()
    }
    return shaped.pop("parameter_values", None), shaped


def _element(value: Any, spec: Any, shape: tuple[int, ...], index: tuple[int, ...]) -> Any:
    """Return the part of a samplex's argument that belongs to one element of an item."""
    import numpy as np

    if not isinstance(value, np.ndarray):
        return value
    intrinsic = value.shape[value.ndim - spec.ndim :]
    return np.broadcast_to(value, (*shape, *intrinsic))[index]


def _render(results: list[dict[str, Any]], version: str, params: dict[str, Any]) -> str:
    module = f"ibm_quantum_schemas.executor.version_{version[1:].replace('.', '_')}"
    models = import_module(f"{module}.models")
    tensor = getattr(models, "CompressedTensorModel", None) or models.TensorModel
    program = params["quantum_program"]
    optional = {
        "passthrough_data": program.get("passthrough_data"),
        "semantic_role": program.get("semantic_role"),
    }
    known = models.QuantumProgramResultModel.model_fields
    result = models.QuantumProgramResultModel(
        data=[
            {
                "results": {name: tensor.from_numpy(array) for name, array in item.items()},
                "metadata": {} if version != "v0.1" else None,
            }
            for item in results
        ],
        metadata={"chunk_timing": []},
        **{name: value for name, value in optional.items() if name in known},
    )
    return str(result.model_dump_json())


def _learn_noise(work: dict[str, Any], prepare: Prepare) -> dict[str, Any]:
    from qiskit_ibm_runtime.json import RuntimeDecoder, RuntimeEncoder

    del prepare
    if work["noise"]:
        raise SimulationError(
            "noise learners are emulated only on QPUs without noise; set `noise = false`"
        )
    params = json.loads(work["request"], cls=RuntimeDecoder)
    limit = (params.get("options") or {}).get("max_layers_to_learn", 4)
    layers: list[Any] = []
    for source in params["circuits"]:
        for layer in _layers(load_circuit(source)):
            layers += [] if layer in layers else [layer]
    chosen = layers[:limit]
    result = {"data": [_without_error(*layer) for layer in chosen], "metadata": {}}
    logs = f"{len(chosen)} of {len(layers)} layers\n"
    return {"result": json.dumps(result, cls=RuntimeEncoder), "logs": logs}


def _layers(loaded: Any) -> list[tuple[Any, list[int]]]:
    """Return the layers of two-qubit gates of a circuit, with the QPU's qubits."""
    from qiskit import QuantumCircuit
    from qiskit.converters import circuit_to_dag

    found = []
    for layer in circuit_to_dag(loaded.circuit).layers():
        gates = [node for node in layer["graph"].op_nodes() if len(node.qargs) == 2]
        if not gates:
            continue
        used = [loaded.circuit.find_bit(bit).index for node in gates for bit in node.qargs]
        circuit = QuantumCircuit(len(used))
        for rank, node in enumerate(gates):
            circuit.append(node.op, (2 * rank, 2 * rank + 1))
        found.append((circuit, [loaded.active[index] for index in used]))
    return found


def _without_error(circuit: Any, qubits: list[int]) -> Any:
    """Return a layer whose Pauli errors on each gate have the rate 0, as nothing adds noise."""
    from itertools import product

    from qiskit.quantum_info import PauliList
    from qiskit_ibm_runtime.results.noise_learner import LayerError, PauliLindbladError

    width = len(qubits)
    labels = [
        "I" * (width - first - 2) + "".join(pair) + "I" * first
        for first in range(0, width, 2)
        for pair in product("IXYZ", repeat=2)
        if pair != ("I", "I")
    ]
    error = PauliLindbladError(PauliList(labels), [0.0] * len(labels))
    return LayerError(circuit, qubits, error)


PROGRAMS = {"executor": _execute, "noiselearner": _learn_noise, "noise-learner": _learn_noise}
"""The programs by name; each takes the work of a task and `Prepare`."""
