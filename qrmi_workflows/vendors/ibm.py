"""IBM: Qiskit primitives, through IBM Quantum Compute Service and IBM Quantum System API.

Results are in the encoding of qiskit-ibm-runtime's `RuntimeEncoder`: objects tagged with
`__type__`, arrays as base64 of zlib of NumPy's format. They are decoded here with NumPy alone, so
that a later step needs no quantum package; `to_primitive_result` gives Qiskit's own object.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors import VendorPayload

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult
    from qiskit.transpiler import Target

__all__ = ["IBM", "to_primitive_result", "transpiler_target"]

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["program_id", "parameters"],
    "properties": {
        "program_id": {"enum": ["sampler", "estimator"]},
        "parameters": {
            "type": "object",
            "required": ["pubs"],
            "properties": {
                "pubs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": ["array", "string"]},
                },
                "version": {"const": 2},
                "shots": {"type": ["integer", "null"], "minimum": 1},
                "precision": {"type": ["number", "null"], "minimum": 0},
                "options": {"type": "object"},
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class _IBM:
    name: str = "ibm"
    types: tuple[str, ...] = (
        "ibm-quantum-compute-service",
        "ibm-quantum-system",
        "qiskit-runtime-service",
    )

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content["program_id"])

    def encode(self, content: Mapping[str, Any]) -> VendorPayload:
        return VendorPayload(
            kind="QiskitPrimitive",
            fields={
                "input": json.dumps(content["parameters"]),
                "program_id": content["program_id"],
            },
        )

    def with_shots(self, content: Mapping[str, Any], shots: int) -> Mapping[str, Any]:
        if content["program_id"] != "sampler":
            raise PayloadError(
                f"--shots {shots}: an estimator has a precision, not shots. Set `precision` in "
                "the payload."
            )
        parameters = content["parameters"]
        pubs = [_sampler_pub(pub, shots) for pub in parameters["pubs"]]
        return {**content, "parameters": {**parameters, "pubs": pubs, "shots": shots}}

    def decode(self, program: str, raw: str) -> list[dict[str, Any]]:
        try:
            document = json.loads(raw)
            pubs = document["__value__"]["pub_results"]
            return [_decode_pub(pub["__value__"]["data"]["__value__"]["fields"]) for pub in pubs]
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ResultError(
                f"IBM's result of this {program} is not a PrimitiveResult as qiskit-ibm-runtime "
                f"encodes it ({error!r}). Its text is kept in `vendor_result`."
            ) from error


IBM = _IBM()


def to_primitive_result(raw: str) -> PrimitiveResult[Any]:
    """Decode a result into Qiskit's `PrimitiveResult`; needs the extra `ibm`."""
    from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    result: PrimitiveResult[Any] = ResultDecoder.decode(raw)
    return result


def transpiler_target(target: str) -> Target:
    """Build Qiskit's transpiler target from a QPU's target; needs the extra `ibm`.

    Args:
        target: The JSON that `Lease.target` and `qpu target` give: a backend's configuration and
            properties, with its calibration.

    Returns:
        What `generate_preset_pass_manager(target=…)` takes.

    Raises:
        ResultError: The text is not a target of IBM's.
    """
    from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
    from qiskit_ibm_runtime.utils.backend_decoder import (
        configuration_from_server_data,
        properties_from_server_data,
    )

    try:
        document = json.loads(target)
        configuration = configuration_from_server_data(document["configuration"])
        properties = properties_from_server_data(document["properties"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"not a target of IBM's: {error!r}. Fetch it again.") from error
    result: Target = convert_to_target(configuration=configuration, properties=properties)
    return result


def _sampler_pub(pub: list[Any] | str, shots: int) -> list[Any]:
    parts = [pub] if isinstance(pub, str) else list(pub)
    values = parts[1] if len(parts) > 1 else None
    return [parts[0], values, shots]


def _decode_pub(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _decode_value(value) for name, value in fields.items()}
    if "evs" in values:
        return values
    return {"registers": values}


def _decode_value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value["__type__"] == "ndarray":
        return _array(value).tolist()
    if value["__type__"] == "BitArray":
        return _decode_bits(value["__value__"])
    raise ValueError(f"__type__ {value['__type__']!r}")


def _array(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    packed = base64.standard_b64decode(value["__value__"])
    array: np.ndarray[Any, Any] = np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)
    return array


def _decode_bits(value: Mapping[str, Any]) -> dict[str, Any]:
    array, num_bits = _array(value["array"]), int(value["num_bits"])
    return {"num_bits": num_bits, "counts": _counts(array, num_bits)}


def _counts(array: np.ndarray[Any, Any], num_bits: int) -> Any:
    """Count bit strings: (…, shots, bytes), big-endian, padded in front, as Qiskit packs them."""
    if array.ndim > 2:
        return [_counts(part, num_bits) for part in array]
    texts = ("".join(f"{byte:08b}" for byte in row)[-num_bits:] for row in array.tolist())
    return dict(sorted(Counter(texts).items()))
