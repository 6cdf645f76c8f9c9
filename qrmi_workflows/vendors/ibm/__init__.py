"""IBM: Qiskit primitives on IBM Quantum Compute Service and IBM Quantum System API.

The primitives are documented at https://quantum.cloud.ibm.com/docs/guides/sampler-input-output, and
the service's REST API at https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest.

Modules that need NumPy are imported inside functions: every lease imports its vendor, but few
processes check circuits or decode results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.config.job import TIMEOUT
from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import (
    Coalescible,
    Converter,
    Emulation,
    ProgramSettings,
    ResourceType,
    VendorPayload,
)
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.ibm import metering
from qrmi_workflows.vendors.ibm.models import snapshots
from qrmi_workflows.vendors.ibm.schema import SCHEMA
from qrmi_workflows.vendors.ibm.target import read_target, transpiler_target

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IBM", "transpiler_target"]

# Both are IBM's defaults: https://quantum.cloud.ibm.com/docs/guides/run-jobs-session and
# https://quantum.cloud.ibm.com/docs/guides/estimate-job-run-time ("approximately 2s per sub-job").
_INTERACTIVE_TTL = 60.0
_TASK_OVERHEAD = 2.0
# The same page: "2+0.00035*<num executions>" (2025), without error mitigation.
_SHOT_SECONDS = 0.00035
# An ISA circuit of any backend.
_WARM_UP = {
    "program_id": "sampler",
    "parameters": {
        "pubs": [["OPENQASM 3.0;\nbit[1] c;\nc[0] = measure $0;\n", None, 1]],
        "version": 2,
        "support_qiskit": True,
    },
}
_TYPES = {
    # QRMI closes the session of a lease whose tasks have not ended, which cancels them (read in
    # qrmi 0.26.4, as is the default TTL).
    "ibm-quantum-compute-service": ResourceType(
        qrmi="IBMQuantumComputeService",
        release_cancels=True,
        release_takes_token=True,
        session_setting="QRMI_IBM_QCS_SESSION_MAX_TTL",
        session_seconds=28800.0,
        mode_setting="QRMI_IBM_QCS_SESSION_MODE",
        warm_up=_WARM_UP,
        interactive_ttl=_INTERACTIVE_TTL,
        task_overhead=_TASK_OVERHEAD,
        submission_seconds=_TASK_OVERHEAD,
        shot_seconds=_SHOT_SECONDS,
        bills_own_errors=False,
        emulation=Emulation(models=snapshots, has_noise=True),
    ),
    # IBM Quantum System API requires a time limit for every task. A scheduler's job sets its own;
    # elsewhere the limit is one day. QRMI 0.26.4 repeats a submission that is refused because all
    # lanes are taken (429) or reserved (423), without a limit; its task_stop also deletes the job.
    "ibm-quantum-system": ResourceType(
        qrmi="IBMQuantumSystem",
        settings={TIMEOUT: "86400"},
        start_waits_for_lane=True,
        release_takes_token=True,
        stop_deletes_finished=True,
        submission_seconds=_TASK_OVERHEAD,
        shot_seconds=_SHOT_SECONDS,
        bills_own_errors=False,
    ),
    "qiskit-runtime-service": ResourceType(
        qrmi="IBMQiskitRuntimeService",
        release_cancels=True,
        release_takes_token=True,
        session_setting="QRMI_IBM_QRS_SESSION_MAX_TTL",
        session_seconds=28800.0,
        mode_setting="QRMI_IBM_QRS_SESSION_MODE",
        warm_up=_WARM_UP,
        interactive_ttl=_INTERACTIVE_TTL,
        task_overhead=_TASK_OVERHEAD,
        submission_seconds=_TASK_OVERHEAD,
        shot_seconds=_SHOT_SECONDS,
        bills_own_errors=False,
    ),
}
_FRONTENDS = {
    "sampler": "qrmi_workflows.frontends.qiskit:make_sampler",
    "estimator": "qrmi_workflows.frontends.qiskit:make_estimator",
}
_CONVERTERS = {
    "to_primitive_result": Converter(
        programs=("sampler", "estimator"),
        function="qrmi_workflows.vendors.ibm.results:to_primitive_result",
    ),
    "to_quantum_program_result": Converter(
        programs=("executor",),
        function="qrmi_workflows.vendors.ibm.programs:to_quantum_program_result",
    ),
    "to_noise_learner_result": Converter(
        programs=("noiselearner",),
        function="qrmi_workflows.vendors.ibm.programs:to_noise_learner_result",
    ),
}


@dataclass(frozen=True, slots=True)
class _IBM:
    name: str = "ibm"
    reads: tuple[str, ...] = ("OpenQASM 3 (.qasm)", "QPY (.qpy)")

    @property
    def schema(self) -> Mapping[str, Any]:
        return SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        return _TYPES

    @property
    def frontends(self) -> Mapping[str, str]:
        return _FRONTENDS

    @property
    def converters(self) -> Mapping[str, Converter]:
        return _CONVERTERS

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        from qrmi_workflows.vendors.ibm.identity import identities

        return identities()

    def export(self, program: object) -> bytes | None:
        """Return a circuit as OpenQASM 3; `None` for anything else."""
        # Only a program that has imported Qiskit can have made a circuit.
        qiskit = sys.modules.get("qiskit")
        if qiskit is None or not isinstance(program, qiskit.QuantumCircuit):
            return None
        from qrmi_workflows.vendors.ibm.circuits import to_openqasm

        return to_openqasm(program).encode()

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if isinstance(source, bytes):
            from qrmi_workflows.vendors.ibm.circuits import read_circuits

            return read_circuits(source, settings, where=where)
        return None

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content["program_id"])

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        from qrmi_workflows.vendors.ibm.checks import check_pub

        _import_for_tasks()
        parameters = content["parameters"]
        default_shots = parameters.get("shots") or parameters.get("options", {}).get(
            "default_shots"
        )
        # The other programs have no PUBs; IBM checks their circuits, which are encoded as QPY.
        for index, pub in enumerate(parameters.get("pubs", ())):
            check_pub(
                content["program_id"],
                pub,
                index=index,
                default_shots=default_shots,
                options=parameters.get("options") or {},
                qpu=qpu,
                target=target,
            )

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        parameters = dict(content["parameters"])
        if content["program_id"] != "executor":  # it has a `schema_version`
            parameters = {"version": 2, **parameters}
        if content["program_id"] in ("sampler", "estimator"):
            program = content["program_id"]
            parameters["pubs"] = [_with_lasting_names(program, pub) for pub in parameters["pubs"]]
        return VendorPayload(
            kind="QiskitPrimitive",
            fields={
                "input": json.dumps(parameters),
                "program_id": content["program_id"],
            },
        )

    def coalescible(self, content: Mapping[str, Any]) -> Coalescible | None:
        from qrmi_workflows.vendors.ibm.coalescing import describe

        return describe(content)

    def coalesce(self, contents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        from qrmi_workflows.vendors.ibm.coalescing import coalesce

        return coalesce(contents)

    def split(self, text: str, counts: Sequence[int]) -> list[str]:
        from qrmi_workflows.vendors.ibm.coalescing import split

        return split(text, counts)

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        return metering.count_shots(content)

    def count_executions(self, content: Mapping[str, Any]) -> int | None:
        """Return about how many shots IBM takes for a precision."""
        if content["program_id"] != "estimator":
            return None
        from qrmi_workflows.vendors.ibm.executions import count_estimator_executions

        return count_estimator_executions(content["parameters"])

    def reported_seconds(self, text: str) -> float | None:
        return metering.reported_seconds(text)

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        parameters = content["parameters"]
        if content["program_id"] == "executor":
            program = {**parameters["quantum_program"], "shots": shots}
            return {**content, "parameters": {**parameters, "quantum_program": program}}
        if content["program_id"] == "noiselearner":
            raise PayloadError(
                f"shots={shots}: a noise learner has shots for each randomization. Set "
                "`shots_per_randomization` in the payload's options."
            )
        if content["program_id"] != "sampler":
            raise PayloadError(
                f"shots={shots}: an estimator takes a precision, not shots. Set `precision` in the "
                "payload."
            )
        pubs = [_with_pub_shots(pub, shots) for pub in parameters["pubs"]]
        return {**content, "parameters": {**parameters, "pubs": pubs, "shots": shots}}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        from qrmi_workflows.vendors.ibm.results import decode_data

        return decode_data(program, text)

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        from qrmi_workflows.vendors.ibm.results import decode_arrays

        return decode_arrays(program, text)

    def calibrated(self, target: str) -> str | None:
        return _calibrated(target)

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:  # noqa: ARG002
        configuration = read_target(target)["configuration"]
        # `supported_instructions` also has `if_else`, `reset` and the like; older QPUs lack it.
        gates = configuration.get("basis_gates"), configuration.get("supported_instructions")
        return Capabilities.of(configuration.get("n_qubits"), *gates)


IBM = _IBM()


@lru_cache(maxsize=8)
def _calibrated(target: str) -> str | None:
    """Parse a target, which may have a megabyte, once."""
    date = read_target(target)["properties"].get("last_update_date")
    return str(date) if date else None


def _import_for_tasks() -> None:
    """Import what `encode` and `decode` need, because they run in threads.

    A child that is forked while a thread imports a module waits for this import for ever (Python
    3.11 to 3.13).
    """
    from qrmi_workflows.vendors.ibm import parameters, registers, results  # noqa: F401


def _with_pub_shots(pub: list[Any] | str, shots: int) -> list[Any]:
    items = [pub] if isinstance(pub, str) else list(pub)
    parameter_values = items[1] if len(items) > 1 else None
    return [items[0], parameter_values, shots]


def _with_lasting_names(program: str, pub: list[Any] | str) -> list[Any]:
    """Return a PUB whose registers and parameters the service cannot lose or mix up."""
    from qrmi_workflows.vendors.ibm.parameters import with_sorted_parameters
    from qrmi_workflows.vendors.ibm.registers import with_registers

    circuit, *rest = [pub] if isinstance(pub, str) else pub
    if not isinstance(circuit, str):
        return [circuit, *rest]
    if program == "sampler":
        circuit = with_registers(circuit)
    values_at = 0 if program == "sampler" else 1
    if not any(isinstance(values, Mapping) for values in rest[values_at : values_at + 1]):
        circuit = with_sorted_parameters(circuit)
    # QRMI's client (0.26.4) takes no PUB that is a circuit alone.
    return [circuit, *rest]
