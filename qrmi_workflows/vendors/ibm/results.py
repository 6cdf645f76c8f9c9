"""Decode IBM's results, which have the encoding of qiskit-ibm-runtime's `RuntimeEncoder`.

`RuntimeEncoder` (qiskit_ibm_runtime/json.py, read in 0.51.0) writes an object as
`{"__type__": …, "__value__": …}`, and an array as base64 of zlib of NumPy's `.npy` format. This
module decodes that with NumPy alone, so that later steps need no quantum package.
`to_primitive_result` uses qiskit-ibm-runtime itself.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.ibm.registers import as_written

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult

__all__ = ["decode_arrays", "decode_data", "to_primitive_result"]


def decode_data(program: str, text: str) -> list[dict[str, Any]]:
    """Decode a result into plain data (see `Vendor.decode`).

    Raises:
        ResultError: The text is not an encoded `PrimitiveResult`.
    """
    return _decode_pubs(program, text, _pub_to_data)


def decode_arrays(program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Decode a result into arrays (see `Vendor.arrays`).

    Raises:
        ResultError: The text is not an encoded `PrimitiveResult`.
    """
    return _decode_pubs(program, text, _pub_to_arrays)


def to_primitive_result(text: str) -> PrimitiveResult[Any]:
    """Decode a result into Qiskit's `PrimitiveResult`. Needs the extra `ibm`.

    Raises:
        ResultError: The text is not an encoded `PrimitiveResult`.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit.primitives import PrimitiveResult
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    try:
        result = ResultDecoder.decode(text)
    except Exception as error:  # the decoder documents no exceptions
        raise _undecodable("primitive", error) from error
    if not isinstance(result, PrimitiveResult):
        raise _undecodable("primitive", type(result).__name__)
    return _with_names_as_written(result)


def _with_names_as_written(result: PrimitiveResult[Any]) -> PrimitiveResult[Any]:
    """Return a result whose fields have the names that the user gave to the registers."""
    from qiskit.primitives import DataBin, PrimitiveResult

    if all(as_written(name) == name for pub in result for name in pub.data):
        return result
    pubs = []
    for pub in result:
        # `DataBin` refuses a few names, such as `size`; these registers keep the sent one.
        fields = {
            name if hasattr(DataBin, as_written(name)) else as_written(name): value
            for name, value in pub.data.items()
        }
        pubs.append(type(pub)(DataBin(shape=pub.data.shape, **fields), metadata=pub.metadata))
    return PrimitiveResult(pubs, metadata=result.metadata)


def _decode_pubs(
    program: str, text: str, decode: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    try:
        pubs = json.loads(text)["__value__"]["pub_results"]
        return [decode(pub["__value__"]["data"]["__value__"]["fields"]) for pub in pubs]
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise _undecodable(program, error) from error


def _undecodable(program: str, reason: object) -> ResultError:
    return ResultError(
        f"IBM's {program} result cannot be decoded ({reason!r}); must be a PrimitiveResult as "
        "qiskit-ibm-runtime encodes it. A newer release of qrmi-workflows may decode it; the task "
        "need not run again."
    )


def _pub_to_data(fields: Mapping[str, Any]) -> dict[str, Any]:
    data = {as_written(name): _field_to_data(field) for name, field in fields.items()}
    return data if "evs" in data else {"registers": data}


def _field_to_data(field: Any) -> Any:
    if not isinstance(field, Mapping):
        return field
    if field["__type__"] == "BitArray":
        packed, num_bits = _packed_bits(field)
        return {"num_bits": num_bits, "counts": _counts(packed, num_bits)}
    return _decode_array(field).tolist()


def _pub_to_arrays(fields: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {as_written(name): _field_to_array(field) for name, field in fields.items()}


def _field_to_array(field: Any) -> np.ndarray[Any, Any]:
    if not isinstance(field, Mapping):
        return np.asarray(field)
    if field["__type__"] == "BitArray":
        packed, num_bits = _packed_bits(field)
        return np.unpackbits(packed, axis=-1)[..., packed.shape[-1] * 8 - num_bits :]
    return _decode_array(field)


def _decode_array(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    if value["__type__"] != "ndarray":
        raise ValueError(f"__type__ {value['__type__']!r}")
    compressed = base64.standard_b64decode(value["__value__"])
    file = io.BytesIO(zlib.decompress(compressed))
    array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    return array


def _packed_bits(value: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Return the array of a `BitArray` and its number of bits.

    The array has the shape (…, shots, bytes). The bytes are big-endian and padded at the front.
    """
    content = value["__value__"]
    return _decode_array(content["array"]), int(content["num_bits"])


def _counts(packed: np.ndarray[Any, Any], num_bits: int) -> Any:
    if packed.ndim > 2:
        return [_counts(part, num_bits) for part in packed]
    bit_strings = ("".join(f"{byte:08b}" for byte in row)[-num_bits:] for row in packed.tolist())
    return dict(sorted(Counter(bit_strings).items()))
