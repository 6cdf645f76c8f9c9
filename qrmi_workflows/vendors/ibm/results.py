"""IBM's results, in the encoding of qiskit-ibm-runtime's `RuntimeEncoder`.

Objects are tagged with `__type__`; arrays are base64 of zlib of NumPy's format. They are decoded
with NumPy alone, so that a later step needs no quantum package; `to_primitive_result` gives
Qiskit's own object.
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

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult

__all__ = ["decode_arrays", "decode_data", "to_primitive_result"]


def decode_data(program: str, text: str) -> list[dict[str, Any]]:
    """Decode a result into plain data (see `Vendor.decode`).

    Raises:
        ResultError: The text is not in that encoding.
    """
    return _each_pub(program, text, _plain_pub)


def decode_arrays(program: str, text: str) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Decode a result into arrays (see `Vendor.arrays`).

    Raises:
        ResultError: The text is not in that encoding.
    """
    return _each_pub(program, text, _array_pub)


def to_primitive_result(text: str) -> PrimitiveResult[Any]:
    """Decode a result into Qiskit's `PrimitiveResult`; needs the extra `ibm`.

    Raises:
        ResultError: The text is not of that encoding.
        ConfigError: The extra is not installed.
    """
    with needs_extra("ibm"):
        from qiskit.primitives import PrimitiveResult
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    try:
        result = ResultDecoder.decode(text)
    except Exception as error:  # the decoder raises whatever it stumbles over
        raise _not_encoded("a task", error) from error
    if not isinstance(result, PrimitiveResult):
        raise _not_encoded("a task", type(result).__name__)
    return result


def _each_pub(program: str, text: str, decode: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    try:
        pubs = json.loads(text)["__value__"]["pub_results"]
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
