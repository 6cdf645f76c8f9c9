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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors import ProgramSettings, VendorPayload, needs_extra
from qrmi_workflows.vendors.ibm_circuits import check_pub, read_circuits
from qrmi_workflows.vendors.ibm_identity import identities
from qrmi_workflows.vendors.ibm_primitives import make_estimator, make_sampler

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult
    from qiskit.transpiler import Target

__all__ = ["IBM", "to_primitive_result", "transpiler_target"]

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
    types: tuple[str, ...] = (
        "ibm-quantum-compute-service",
        "ibm-quantum-system",
        "qiskit-runtime-service",
    )
    reads: tuple[str, ...] = ("OpenQASM 3 (.qasm)", "QPY (.qpy)")

    @property
    def schema(self) -> Mapping[str, Any]:
        return _SCHEMA

    @property
    def frontends(self) -> Mapping[str, Callable[..., Any]]:
        return {"sampler": make_sampler, "estimator": make_estimator}

    def identities(self) -> Mapping[type, Callable[[Any], bytes]]:
        return identities()

    def read(
        self, source: bytes | Mapping[str, Any], settings: ProgramSettings, *, where: str
    ) -> Mapping[str, Any] | None:
        if isinstance(source, bytes):
            return read_circuits(source, settings, where=where)
        return None

    def program(self, content: Mapping[str, Any]) -> str:
        return str(content["program_id"])

    def check(self, content: Mapping[str, Any], *, qpu: str, target: str | None) -> None:
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

    def decode(self, program: str, raw: str) -> list[dict[str, Any]]:
        return _each_pub(program, raw, _plain_pub)

    def arrays(self, program: str, raw: str) -> list[dict[str, np.ndarray[Any, Any]]]:
        return _each_pub(program, raw, _array_pub)

    def calibrated(self, target: str) -> str | None:
        document = _target_document(target)
        return str(date) if (date := document["properties"].get("last_update_date")) else None


IBM = _IBM()


def to_primitive_result(raw: str) -> PrimitiveResult[Any]:
    """Decode a result into Qiskit's `PrimitiveResult`; needs the extra `ibm`.

    Raises:
        ResultError: The text is not of that encoding.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit.primitives import PrimitiveResult
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    try:
        result = ResultDecoder.decode(raw)
    except Exception as error:  # the decoder raises whatever it stumbles over
        raise _not_encoded("a task", error) from error
    if not isinstance(result, PrimitiveResult):
        raise _not_encoded("a task", type(result).__name__)
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
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
        from qiskit_ibm_runtime.utils.backend_decoder import (
            configuration_from_server_data,
            properties_from_server_data,
        )

    document = _target_document(target)
    try:
        configuration = configuration_from_server_data(document["configuration"])
        properties = properties_from_server_data(document["properties"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_target(repr(error)) from error
    result: Target = convert_to_target(configuration=configuration, properties=properties)
    return result


def _target_document(target: str) -> dict[str, Any]:
    """Read a target; QRMI's client puts `null` where the vendor gave an error."""
    try:
        document: dict[str, Any] = json.loads(target)
        kinds = {type(document[part]) for part in ("configuration", "properties")}
    except (KeyError, TypeError, ValueError) as error:
        raise _no_target(repr(error)) from error
    if kinds != {dict}:
        raise _no_target("it is without configuration or properties")
    return document


def _no_target(why: str) -> ResultError:
    return ResultError(
        f"not a target of IBM's: {why}. Fetch it again: `qpu target NAME` and `lease.target()` "
        "give that of a QPU of IBM's, as text."
    )


def _sampler_pub(pub: list[Any] | str, shots: int) -> list[Any]:
    parts = [pub] if isinstance(pub, str) else list(pub)
    values = parts[1] if len(parts) > 1 else None
    return [parts[0], values, shots]


def _each_pub(program: str, raw: str, decode: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    try:
        pubs = json.loads(raw)["__value__"]["pub_results"]
        return [decode(pub["__value__"]["data"]["__value__"]["fields"]) for pub in pubs]
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise _not_encoded(f"this {program}", error) from error


def _not_encoded(what: str, why: object) -> ResultError:
    return ResultError(
        f"IBM's result of {what} is not a PrimitiveResult as qiskit-ibm-runtime encodes it "
        f"({why!r}). Its text is kept in `vendor_result`."
    )


def _plain_pub(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _plain(value) for name, value in fields.items()}
    return values if "evs" in values else {"registers": values}


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value["__type__"] == "BitArray":
        array, num_bits = _packed_bits(value)
        return {"num_bits": num_bits, "counts": _counts(array, num_bits)}
    return _array(value).tolist()


def _array_pub(fields: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: _as_array(value) for name, value in fields.items()}


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    if value["__type__"] == "BitArray":
        array, num_bits = _packed_bits(value)
        return np.unpackbits(array, axis=-1)[..., array.shape[-1] * 8 - num_bits :]
    return _array(value)


def _array(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    if value["__type__"] != "ndarray":
        raise ValueError(f"__type__ {value['__type__']!r}")
    packed = base64.standard_b64decode(value["__value__"])
    array: np.ndarray[Any, Any] = np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)
    return array


def _packed_bits(value: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Return bits as Qiskit packs them: (…, shots, bytes), big-endian, padded in front."""
    content = value["__value__"]
    return _array(content["array"]), int(content["num_bits"])


def _counts(array: np.ndarray[Any, Any], num_bits: int) -> Any:
    if array.ndim > 2:
        return [_counts(part, num_bits) for part in array]
    texts = ("".join(f"{byte:08b}" for byte in row)[-num_bits:] for row in array.tolist())
    return dict(sorted(Counter(texts).items()))
