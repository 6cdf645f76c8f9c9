"""Qiskit Aer behind IBM's QPUs: the sampler and estimator primitives.

Runs in worker processes alone: it imports qiskit. The input's form is IBM's,
https://github.com/Qiskit/ibm-quantum-schemas (sampler_v2, estimator_v2); the result's is that of
qiskit-ibm-runtime's `RuntimeEncoder`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit, load_circuit, parameter_sets
from qrmi_workflows.emulator.simulators.observables import estimate, load_observables

__all__ = ["run"]

DEFAULT_SHOTS = 4096
DEFAULT_PRECISION = 0.015625
STATEVECTOR_QUBITS = 26  # 2**26 amplitudes of 16 bytes: 1 GiB


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a sampler or estimator job.

    Args:
        job: `program`, `request` (the vendor's input as JSON text), `seed`, `noise`, `exact`,
            `model`.

    Returns:
        `result` (text as the vendor gives it) and `logs`.

    Raises:
        SimulationError: It cannot be simulated.
    """
    from qiskit.primitives.containers import PrimitiveResult
    from qiskit_ibm_runtime.json import RuntimeDecoder, RuntimeEncoder

    programs = {"sampler": _sample, "estimator": _estimate}
    if job["program"] not in programs:
        raise SimulationError(
            f"program {job['program']!r} is not emulated; sampler and estimator are"
        )
    try:
        params = json.loads(job["request"], cls=RuntimeDecoder)
    except Exception as error:  # QPY and npy errors of all kinds
        raise SimulationError(f"the input cannot be decoded: {error}") from error
    options = params.get("options") or {}
    job["seed"] = (options.get("simulator") or {}).get("seed_simulator") or job["seed"]
    logs: list[str] = []
    results = [programs[job["program"]](pub, params, options, job, logs) for pub in params["pubs"]]
    result = PrimitiveResult(results, metadata={"version": 2})
    return {"result": json.dumps(result, cls=RuntimeEncoder), "logs": "".join(logs)}


def _sample(
    pub: Any, params: dict[str, Any], options: dict[str, Any], job: dict[str, Any], logs: list[str]
) -> Any:
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit_aer.primitives import SamplerV2

    source, values, shots = _fields(pub, 3)
    shots = shots or params.get("shots") or options.get("default_shots") or DEFAULT_SHOTS
    loaded = load_circuit(source)
    circuit = _runnable(loaded.circuit)
    method = _method(circuit)
    logs.append(_describe(loaded, method, f"{shots} shots"))
    sampler = SamplerV2(seed=job["seed"], options={"backend_options": {"method": method}})
    bindings = parameter_sets(values, loaded.parameters)
    coerced = _coerced(SamplerPub, circuit, bindings, shots)
    return sampler.run([coerced]).result()[0]


def _estimate(
    pub: Any, params: dict[str, Any], options: dict[str, Any], job: dict[str, Any], logs: list[str]
) -> Any:
    source, observables, values, precision = _fields(pub, 4)
    for candidate in (precision, params.get("precision"), options.get("default_precision")):
        if candidate is not None:
            precision = float(candidate)
            break
    else:
        shots = options.get("default_shots")
        precision = 1 / math.sqrt(shots) if shots else DEFAULT_PRECISION
    if job["exact"]:
        precision = 0.0
    loaded = load_circuit(source)
    circuit = _runnable(loaded.circuit)
    method = _method(circuit)
    logs.append(_describe(loaded, method, f"precision {precision:g}"))
    bindings = parameter_sets(values, loaded.parameters)
    terms = load_observables(observables, loaded)
    return estimate(circuit, loaded.parameters, bindings, terms, precision, method, job["seed"])


def _fields(pub: Any, count: int) -> list[Any]:
    values = list(pub) if isinstance(pub, (list, tuple)) else [pub]
    if not 1 <= len(values) <= count:
        raise SimulationError(f"a PUB of {len(values)} elements; allowed are 1 to {count}")
    return values + [None] * (count - len(values))


def _coerced(kind: Any, circuit: Any, bindings: Any, shots: int) -> Any:
    try:
        return kind(circuit, bindings, shots)
    except (TypeError, ValueError) as error:
        raise SimulationError(str(error)) from error


def _runnable(circuit: Any) -> Any:
    from qiskit import transpile
    from qiskit_aer import AerSimulator

    backend = AerSimulator()
    if set(circuit.count_ops()) <= {*backend.operation_names, "measure", "barrier", "delay"}:
        return circuit
    return transpile(circuit, backend, optimization_level=0)


def _method(circuit: Any) -> str:
    from qiskit_aer import AerSimulator

    if circuit.num_qubits <= STATEVECTOR_QUBITS:
        return "statevector"
    stabilizer = set(AerSimulator(method="stabilizer").operation_names)
    if set(circuit.count_ops()) <= stabilizer:
        return "stabilizer"
    return "matrix_product_state"


def _describe(loaded: LoadedCircuit, method: str, effort: str) -> str:
    return (
        f"circuit of {loaded.width} qubits, {len(loaded.active)} of them in use, "
        f"{len(loaded.parameters)} parameters: method {method}, {effort}\n"
    )
