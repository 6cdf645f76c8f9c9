"""OQTOPUS: circuits in OpenQASM 3 on OQTOPUS Cloud.

The API is documented by https://github.com/oqtopus-team/oqtopus-client (read in 1.3.0). A payload
has the arguments of its `OqtopusJobSpec`, except the device, which QRMI's client adds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import (
    ProgramSettings,
    ResourceType,
    VendorPayload,
    WithoutSDK,
)
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.counts import to_bits, to_register

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OQTOPUS"]

_MAX_SHOTS = 10_000_000
_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_INFO: dict[str, Any] = {"type": ["object", "null"]}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["job_type", "program"],
    "properties": {
        "job_type": {"enum": ["sampling", "estimation", "multi_manual", "sse"]},
        "program": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "shots": {"type": ["integer", "null"], "minimum": 1, "maximum": _MAX_SHOTS},
        "name": _TEXT,
        "description": _TEXT,
        "transpiler_info": _INFO,
        "simulator_info": _INFO,
        "mitigation_info": _INFO,
        "operator": {"type": ["array", "null"], "items": {"type": "object"}},
    },
    "additionalProperties": False,
    "allOf": [
        {
            "if": {
                "required": ["job_type"],
                "properties": {"job_type": {"const": "estimation"}},
            },
            "then": {"required": ["operator"], "properties": {"operator": {"type": "array"}}},
        },
        {
            "if": {"properties": {"job_type": {"enum": ["sampling", "estimation", "sse"]}}},
            "then": {"properties": {"program": {"maxItems": 1}}},
        },
    ],
}


@dataclass(frozen=True, slots=True)
class _Oqtopus(WithoutSDK):
    """The interface is documented in `qrmi_workflows.vendors.base.Vendor`."""

    name: str = "oqtopus"
    # A file of OpenQASM 3 is read as IBM's; a payload says which vendor is meant.
    reads: tuple[str, ...] = ()

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def types(self) -> Mapping[str, ResourceType]:
        missing = (
            "QRMI's client calls OQTOPUS through a library that its wheel does not contain. Build "
            "`dependencies/oqtopus` of https://github.com/qiskit-community/qrmi, set "
            "PY_BRIDGE_PATH to it, and run `pip install oqtopus-client`."
        )
        return {
            "oqtopus": ResourceType(
                qrmi="OQTOPUS", remedies={"liboqtopus_py_bridge": missing, "libpython": missing}
            )
        }

    def read(
        self,
        source: bytes | Mapping[str, Any],  # noqa: ARG002 - part of the protocol, as below
        settings: ProgramSettings,  # noqa: ARG002
        *,
        where: str,  # noqa: ARG002
    ) -> Mapping[str, Any] | None:
        return None

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content["job_type"])

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
        del content, qpu, target  # OQTOPUS transpiles circuits, and refuses those that do not fit

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        # QRMI's client (0.26.4) fails for null shots, and OQTOPUS has defaults for all others.
        given = {name: value for name, value in content.items() if value is not None}
        return VendorPayload(kind="Oqtopus", fields={"job_spec": json.dumps(given)})

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        shots = content.get("shots")  # OQTOPUS chooses them if they are not given
        return None if shots is None else int(shots)

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        return {**content, "shots": shots}

    def decode(self, program: str, text: str) -> list[dict[str, Any]] | None:
        if program == "sse":  # the result of a user's own program
            return None
        return _read_result(program, text)

    def arrays(self, program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        import numpy as np

        arrays = []
        for item in _read_result(program, text):
            if "registers" not in item:
                arrays.append({name: np.asarray(value) for name, value in item.items()})
                continue
            arrays.append({"results": to_bits(item["registers"]["results"]["counts"])})
        return arrays

    def calibrated(self, target: str) -> str | None:
        date = _read_target(target).get("calibrated_at")
        return str(date) if date else None

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:  # noqa: ARG002
        document = _read_target(target)
        gates = document.get("basis_gates"), document.get("supported_instructions")
        return Capabilities.of(document.get("n_qubits"), *gates)


OQTOPUS = _Oqtopus()


def _read_target(target: str) -> dict[str, Any]:
    try:
        return dict(json.loads(target))
    except (TypeError, ValueError) as error:
        raise ResultError(
            f"not a valid target of OQTOPUS: {target!r:.60}. Fetch it again: `qpu target NAME` and "
            "`lease.target()` return it as text."
        ) from error


def _read_result(program: str, text: str) -> list[dict[str, Any]]:
    try:
        result = json.loads(text)["job_info"]["result"]
        if program == "estimation":
            found = result["estimation"]
            return [{"evs": float(found["exp_value"]), "stds": found.get("stds")}]
        sampled = result["sampling"]
        divided = sampled.get("divided_counts") if program == "multi_manual" else None
        parts = [divided[key] for key in sorted(divided, key=int)] if divided else [None]
        return [_to_register(sampled["counts"] if part is None else part) for part in parts]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(
            f"OQTOPUS's {program} result cannot be decoded ({error!r}); must have `counts` or "
            "`exp_value` in `job_info`. A newer release of qrmi-workflows may decode it; the task "
            "need not run again."
        ) from error


def _to_register(found: Mapping[str, Any]) -> dict[str, Any]:
    counts = {bits: int(number) for bits, number in sorted(found.items())}
    if any(set(bits) - {"0", "1"} for bits in counts):
        raise ValueError(f"not bit strings: {', '.join(counts):.60}")
    return {"registers": {"results": to_register(counts)}}
