"""IBM: Qiskit primitives, on IBM Quantum Compute Service and IBM Quantum System API.

What needs NumPy is imported when it is called: every lease loads its vendor, and few processes
decode a result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qrmi_workflows.config.job import TIMEOUT
from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import Converter, ProgramSettings, ResourceType, VendorPayload
from qrmi_workflows.vendors.ibm.target import read_target, transpiler_target

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IBM", "transpiler_target"]

_TYPES = {
    "ibm-quantum-compute-service": ResourceType(qrmi="IBMQuantumComputeService"),
    # Its API wants a time limit for every task; outside a job with one of its own, a day.
    "ibm-quantum-system": ResourceType(qrmi="IBMQuantumSystem", settings={TIMEOUT: "86400"}),
    "qiskit-runtime-service": ResourceType(qrmi="IBMQiskitRuntimeService"),
}
_FRONTENDS = {
    "sampler": "qrmi_workflows.frontends.qiskit:make_sampler",
    "estimator": "qrmi_workflows.frontends.qiskit:make_estimator",
}
_CONVERTERS = {
    "to_primitive_result": Converter(
        programs=("sampler", "estimator"),
        function="qrmi_workflows.vendors.ibm.results:to_primitive_result",
    )
}
_SHOTS = {"type": ["integer", "null"], "minimum": 1}
_PRECISION = {"type": ["number", "null"], "minimum": 0}
_CIRCUIT = {"type": ["string", "object"], "minLength": 1}
_SAMPLER_PUB = {
    "type": ["array", "string"],
    "prefixItems": [_CIRCUIT, True, _SHOTS],
    "minItems": 1,
    "maxItems": 3,
    "minLength": 1,
}
_ESTIMATOR_PUB = {
    "type": "array",
    "prefixItems": [_CIRCUIT, True, True, _PRECISION],
    "minItems": 2,
    "maxItems": 4,
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["program_id", "parameters"],
    "properties": {
        "program_id": {"enum": ["sampler", "estimator"]},
        "parameters": {
            "type": "object",
            "required": ["pubs"],
            "properties": {
                "pubs": {"type": "array", "minItems": 1},
                "version": {"const": 2},
                "shots": _SHOTS,
                "precision": _PRECISION,
                "options": {
                    "type": "object",
                    "properties": {"default_shots": _SHOTS, "default_precision": _PRECISION},
                },
            },
        },
    },
    "if": {"properties": {"program_id": {"const": "estimator"}}},
    "then": {"properties": {"parameters": {"properties": {"pubs": {"items": _ESTIMATOR_PUB}}}}},
    "else": {"properties": {"parameters": {"properties": {"pubs": {"items": _SAMPLER_PUB}}}}},
}


@dataclass(frozen=True, slots=True)
class _IBM:
    name: str = "ibm"
    reads: tuple[str, ...] = ("OpenQASM 3 (.qasm)", "QPY (.qpy)")

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

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
        from qrmi_workflows.vendors.ibm.circuits import check_pub

        for index, pub in enumerate(content["parameters"]["pubs"]):
            check_pub(content["program_id"], pub, index=index, qpu=qpu, target=target)

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="QiskitPrimitive",
            fields={
                "input": json.dumps({"version": 2, **content["parameters"]}),
                "program_id": content["program_id"],
            },
        )

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        if content["program_id"] != "sampler":
            raise PayloadError(
                f"shots = {shots}: an estimator has a precision, not shots. Set `precision` in "
                "the payload."
            )
        parameters = content["parameters"]
        pubs = [_sampler_pub(pub, shots) for pub in parameters["pubs"]]
        return {**content, "parameters": {**parameters, "pubs": pubs, "shots": shots}}

    def decode(self, program: str, text: str) -> list[dict[str, Any]]:
        from qrmi_workflows.vendors.ibm.results import decode_data

        return decode_data(program, text)

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        from qrmi_workflows.vendors.ibm.results import decode_arrays

        return decode_arrays(program, text)

    def calibrated(self, target: str) -> str | None:
        document = read_target(target)
        return str(date) if (date := document["properties"].get("last_update_date")) else None


IBM = _IBM()


def _sampler_pub(pub: list[Any] | str, shots: int) -> list[Any]:
    parts = [pub] if isinstance(pub, str) else list(pub)
    values = parts[1] if len(parts) > 1 else None
    return [parts[0], values, shots]
