"""Qiskit Aer behind IBM's QPUs: the sampler and estimator primitives.

Runs in worker processes alone: it imports qiskit. The input's form is IBM's,
https://github.com/Qiskit/ibm-quantum-schemas (sampler_v2, estimator_v2); the result's is that of
qiskit-ibm-runtime's `RuntimeEncoder`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from qrmi_workflows.emulator.backends import backend_document
from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit, load_circuit, parameter_sets
from qrmi_workflows.emulator.simulators.noise import choose_method, noise_model, require_native
from qrmi_workflows.emulator.simulators.observables import Plan, estimate, load_observables

__all__ = ["run", "warm"]

_PLAIN = {"model": "fez", "noise": False, "exact": False, "strict": False}
DEFAULT_SHOTS = 4096
DEFAULT_PRECISION = 0.015625


def warm() -> None:
    """Run a small job, so that the first real one does not wait for imports."""
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; h $0; c[0] = measure $0;'
    request = json.dumps({"pubs": [[circuit, None, 1]], "version": 2})
    run({"program": "sampler", "request": request, "seed": 1, **_PLAIN})


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a sampler or estimator job.

    Args:
        job: `program`, `request` (the vendor's input as JSON text), `seed`, `noise`, `exact`,
            `strict`, `model`.

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
    ignored = sorted(set(options) & {"dynamical_decoupling", "resilience", "twirling"})
    logs = [f"ignored by this emulator: the options {', '.join(ignored)}\n"] if ignored else []
    results = [programs[job["program"]](pub, params, options, job, logs) for pub in params["pubs"]]
    result = PrimitiveResult(results, metadata={"version": 2})
    return {"result": json.dumps(result, cls=RuntimeEncoder), "logs": "".join(logs)}


def _sample(
    pub: Any, params: dict[str, Any], options: dict[str, Any], job: dict[str, Any], logs: list[str]
) -> Any:
    from qiskit.exceptions import QiskitError
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit_aer.primitives import SamplerV2

    source, values, shots = _fields(pub, 3)
    shots = shots or params.get("shots") or options.get("default_shots") or DEFAULT_SHOTS
    loaded, method, noise = _prepare(source, job)
    logs.append(_describe(loaded, method, noise, f"{shots} shots"))
    backend_options = {"method": method, "noise_model": noise}
    sampler = SamplerV2(seed=job["seed"], options={"backend_options": backend_options})
    bindings = parameter_sets(values, loaded.parameters)
    try:
        return sampler.run([SamplerPub(loaded.circuit, bindings, shots)]).result()[0]
    except (TypeError, ValueError, QiskitError) as error:
        raise SimulationError(str(error)) from error


def _estimate(
    pub: Any, params: dict[str, Any], options: dict[str, Any], job: dict[str, Any], logs: list[str]
) -> Any:
    source, observables, values, precision = _fields(pub, 4)
    precision = 0.0 if job["exact"] else _precision(precision, params, options)
    loaded, method, noise = _prepare(source, job)
    logs.append(_describe(loaded, method, noise, f"precision {precision:g}"))
    bindings = parameter_sets(values, loaded.parameters)
    terms = load_observables(observables, loaded)
    plan = Plan(method=method, noise=noise, precision=precision, seed=job["seed"])
    return estimate(loaded, bindings, terms, plan)


def _precision(value: float | None, params: dict[str, Any], options: dict[str, Any]) -> float:
    for candidate in (value, params.get("precision"), options.get("default_precision")):
        if candidate is not None:
            return float(candidate)
    shots = options.get("default_shots")
    return 1 / math.sqrt(shots) if shots else DEFAULT_PRECISION


def _prepare(source: object, job: dict[str, Any]) -> tuple[LoadedCircuit, str, Any]:
    loaded = load_circuit(source)
    width = backend_document(job["model"], "conf")["n_qubits"]
    if max(loaded.active) >= width:
        raise SimulationError(
            f"the circuit uses qubit {max(loaded.active)}; {job['model']} has {width} qubits"
        )
    noise = None
    if job["noise"] or job["strict"]:
        require_native(job["model"], loaded.active, loaded.circuit)
    if job["noise"]:
        noise = noise_model(job["model"], loaded.active)
    else:
        loaded = replace(loaded, circuit=_runnable(loaded.circuit))
    return loaded, choose_method(loaded.circuit, noise is not None), noise


def _fields(pub: Any, count: int) -> list[Any]:
    values = list(pub) if isinstance(pub, (list, tuple)) else [pub]
    if not 1 <= len(values) <= count:
        raise SimulationError(f"a PUB of {len(values)} elements; allowed are 1 to {count}")
    return values + [None] * (count - len(values))


def _runnable(circuit: Any) -> Any:
    from qiskit import transpile
    from qiskit_aer import AerSimulator

    backend = AerSimulator()
    if set(circuit.count_ops()) <= {*backend.operation_names, "measure", "barrier", "delay"}:
        return circuit
    return transpile(circuit, backend, optimization_level=0)


def _describe(loaded: LoadedCircuit, method: str, noise: Any, effort: str) -> str:
    return (
        f"circuit of {loaded.width} qubits, {len(loaded.active)} of them in use, "
        f"{len(loaded.parameters)} parameters: method {method}, "
        f"{'with' if noise else 'without'} noise, {effort}\n"
    )
