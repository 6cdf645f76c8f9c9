"""Qiskit Aer behind IBM's QPUs: the sampler and estimator primitives, and other programs.

The input follows IBM's schemas sampler_v2 and estimator_v2
(https://github.com/Qiskit/ibm-quantum-schemas).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import (
    LoadedCircuit,
    drop_leading_resets,
    load_circuit,
    parameter_sets,
)
from qrmi_workflows.emulator.simulators.clock import start_clock, stop_clock
from qrmi_workflows.emulator.simulators.control_flow import simplify_control_flow
from qrmi_workflows.emulator.simulators.estimation import estimate
from qrmi_workflows.emulator.simulators.ibm_results import write_result
from qrmi_workflows.emulator.simulators.noise import choose_method, noise_model, require_native
from qrmi_workflows.emulator.simulators.observables import load_observables
from qrmi_workflows.emulator.simulators.options import (
    choose_seed,
    find_ineffective,
    require_emulated,
)
from qrmi_workflows.emulator.simulators.programs import PROGRAMS
from qrmi_workflows.emulator.simulators.qubit_order import order_by_coupling
from qrmi_workflows.emulator.simulators.runtime_json import decode
from qrmi_workflows.emulator.simulators.sampling import (
    LIMIT_SECONDS,
    Engine,
    derive_seed,
    is_random,
    sample_registers,
)

__all__ = ["run", "warm"]

_WARM_UP_SETTINGS = {"model": "fez", "noise": False, "exact": False, "strict": False}
# IBM's defaults; the precision is that of 4096 shots.
DEFAULT_SHOTS = 4096
DEFAULT_PRECISION = 0.015625


def warm() -> None:
    """Run a small sampler, so that the first task does not wait for imports."""
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; h $0; c[0] = measure $0;'
    request = json.dumps({"pubs": [[circuit, None, 1]], "version": 2})
    run({"program": "sampler", "request": request, "seed": 1, **_WARM_UP_SETTINGS})


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Run a sampler, an estimator, or another IBM program.

    Args:
        work: `program`, `request` (the vendor's input as JSON text), `seed`, `noise`, `exact`,
            `strict`, `model` and `server`; `limit_seconds`, if given, the computing time after
            which the process is killed if a circuit is too wide for a state vector.

    Returns:
        `result` (the text that IBM's API returns) and `logs`.

    Raises:
        SimulationError: The request cannot be simulated.
    """
    try:
        if work["program"] in PROGRAMS:
            return PROGRAMS[work["program"]](work, _prepare)
        return _run_primitive(work)
    finally:
        stop_clock()


def _run_primitive(work: dict[str, Any]) -> dict[str, Any]:
    from qiskit.primitives.containers import PrimitiveResult

    programs = {"sampler": _sample, "estimator": _estimate}
    try:
        params = decode(work["request"])
    except Exception as error:  # the QPY and NumPy decoders raise many types
        raise SimulationError(f"the input cannot be decoded: {error}") from error
    options = params.get("options") or {}
    seed = choose_seed(options, work["seed"])
    require_emulated(options)
    warnings = find_ineffective(params, options)
    logs = [f"{warning}\n" for warning in warnings]
    run_pub = programs[work["program"]]
    pub_results = []
    for rank, pub in enumerate(params["pubs"]):
        own = {**work, "seed": derive_seed(seed, rank)}
        pub_result = run_pub(pub, params, options, own, logs)
        if warnings:
            pub_result.metadata["warnings"] = warnings
        pub_results.append(pub_result)
    result = PrimitiveResult(pub_results, metadata={"version": 2})
    text = write_result(result, params, work.get("server", {}))
    return {"result": text, "logs": "".join(logs)}


def _sample(
    pub: Any, params: dict[str, Any], options: dict[str, Any], work: dict[str, Any], logs: list[str]
) -> Any:
    from qiskit.primitives import DataBin, SamplerPubResult

    source, values, shots = _unpack_pub(pub, 3)
    shots = shots or params.get("shots") or options.get("default_shots") or DEFAULT_SHOTS
    loaded, engine = _prepare(source, work)
    logs.append(_describe(loaded, engine, f"{shots} shots"))
    bindings = parameter_sets(values, loaded.parameters)
    registers = sample_registers(loaded.circuit, bindings, shots, engine)
    metadata = {"shots": shots, "circuit_metadata": loaded.circuit.metadata or {}}
    return SamplerPubResult(DataBin(**registers, shape=bindings.shape), metadata=metadata)


def _estimate(
    pub: Any, params: dict[str, Any], options: dict[str, Any], work: dict[str, Any], logs: list[str]
) -> Any:
    source, observables, values, pub_precision = _unpack_pub(pub, 4)
    loaded, engine = _prepare(source, work)
    precision = _choose_precision(pub_precision, params, options)
    if work["exact"] and engine.noise is None and not is_random(loaded.circuit):
        precision = 0.0
    logs.append(_describe(loaded, engine, f"precision {precision:g}"))
    bindings = parameter_sets(values, loaded.parameters)
    operators = load_observables(observables, loaded)
    return estimate(loaded, bindings, operators, precision, engine)


def _choose_precision(
    pub_precision: float | None, params: dict[str, Any], options: dict[str, Any]
) -> float:
    for value in (pub_precision, params.get("precision"), options.get("default_precision")):
        if value is not None:
            return float(value)
    shots = options.get("default_shots")
    return 1 / math.sqrt(shots) if shots else DEFAULT_PRECISION


def _prepare(source: object, work: dict[str, Any]) -> tuple[LoadedCircuit, Engine]:
    sorts = work.get("server", {}).get("sorts_parameters", False)
    loaded = load_circuit(source, sorts_parameters=sorts)
    loaded = replace(loaded, circuit=simplify_control_flow(loaded.circuit))
    width = backend_document(work["model"], "conf")["n_qubits"]
    if max(loaded.active) >= width:
        raise SimulationError(
            f"the circuit uses qubit {max(loaded.active)}, but {work['model']} has {width} qubits"
        )
    # IBM refuses circuits that are not ISA in any form. Those in OpenQASM are taken here, so that
    # programs can be tried before they are transpiled; a QPY of one is most likely a mistake.
    if work["noise"] or work["strict"] or not isinstance(source, str):
        require_native(work["model"], loaded.active, loaded.circuit)
    if not work["noise"]:
        circuit = drop_leading_resets(loaded.circuit)
        loaded = replace(loaded, circuit=_decompose(circuit))
    method = choose_method(loaded.circuit, work["noise"])
    if method == "matrix_product_state":
        loaded = order_by_coupling(loaded)
        start_clock(work.get("limit_seconds"))
    noise = noise_model(work["model"], loaded.active) if work["noise"] else None
    limit = work.get("limit_seconds", LIMIT_SECONDS)
    return loaded, Engine(method=method, noise=noise, seed=work["seed"], limit_seconds=limit)


def _unpack_pub(pub: Any, max_length: int) -> list[Any]:
    """Return a PUB's elements, with `None` for those it lacks at its end."""
    values = list(pub) if isinstance(pub, (list, tuple)) else [pub]
    if not 1 <= len(values) <= max_length:
        raise SimulationError(f"a PUB has {len(values)} elements; must have 1 to {max_length}")
    return values + [None] * (max_length - len(values))


def _decompose(circuit: Any) -> Any:
    """Rewrite a circuit in Aer's instructions, if it uses others."""
    from qiskit import transpile
    from qiskit_aer import AerSimulator

    backend = AerSimulator()
    if set(circuit.count_ops()) <= {*backend.operation_names, "measure", "barrier", "delay"}:
        return circuit
    return transpile(circuit, backend, optimization_level=0)


def _describe(loaded: LoadedCircuit, engine: Engine, effort: str) -> str:
    return (
        f"circuit with {loaded.width} qubits ({len(loaded.active)} in use) and "
        f"{len(loaded.parameters)} parameters: method {engine.method}, "
        f"{'with' if engine.noise else 'without'} noise, {effort}\n"
    )
