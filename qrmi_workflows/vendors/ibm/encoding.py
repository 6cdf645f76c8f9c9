"""IBM's encodings of values in results, decoded with NumPy alone.

There are three. `RuntimeEncoder` (qiskit_ibm_runtime/json.py, read in 0.51.0) writes an object as
`{"__type__": …, "__value__": …}`, and an array as base64 of zlib of NumPy's `.npy` format. Plain
JSON has samples as hexadecimal numbers and arrays as nested lists
(https://github.com/Qiskit/ibm-quantum-schemas, `sampler_result_v2_schema.json`). The programs
`executor` and `noise-learner` write an array as `{"data": …, "shape": …, "dtype": …}`
(`common/tensor.py` there).
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Bits", "arrays_of", "decode_value", "to_plain"]

_Array = np.ndarray[Any, Any]

_TENSOR_KEYS = {"data", "shape", "dtype"}
_TENSOR_TYPES = {
    "bool": "u1",
    **{f"{kind}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    **{f"f{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"c{8 * size}": f"<c{size}" for size in (8, 16)},
}


@dataclass(frozen=True, slots=True)
class Bits:
    """The bits of one register.

    Attributes:
        packed: Bytes of the shape (…, shots, bytes), big-endian and padded at the front.
        num_bits: The number of bits in the register.
    """

    packed: _Array = field(repr=False)
    num_bits: int

    @classmethod
    def from_samples(cls, samples: list[Any], num_bits: int) -> Bits:
        """Read samples as hexadecimal numbers, in nested lists if parameters were broadcast."""
        nested = np.array(samples, dtype=object)
        numbers = [int(sample, 16) for sample in nested.ravel().tolist()]
        if any(number >> num_bits for number in numbers):
            raise ValueError(f"a sample {max(numbers):#x} in a register of {num_bits} bits")
        size = -(-num_bits // 8)
        data = b"".join(number.to_bytes(size) for number in numbers)
        return cls(np.frombuffer(data, np.uint8).reshape(*nested.shape, size), num_bits)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter values; without the shots."""
        *shape, _, _ = self.packed.shape
        return tuple(shape)

    def in_shape(self, shape: tuple[int, ...]) -> Bits:
        """Return the bits of one flat list of samples in the shape of the parameter values."""
        samples, size = self.packed.shape
        shots = samples // math.prod(shape)
        return Bits(self.packed.reshape(*shape, shots, size), self.num_bits)

    def unpack(self) -> _Array:
        """Return one number, 0 or 1, for each bit, in the shape (…, shots, bits)."""
        padding = self.packed.shape[-1] * 8 - self.num_bits
        return np.unpackbits(self.packed, axis=-1)[..., padding:]


def decode_value(value: Any) -> Any:
    """Decode the arrays, complex numbers and registers in a JSON value.

    Arrays become NumPy's, registers `Bits`. What has no counterpart in NumPy, such as a circuit,
    stays as it is.

    Raises:
        ValueError, TypeError, LookupError, EOFError, zlib.error: The value is malformed.
    """
    if isinstance(value, list):
        return [decode_value(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "__type__" in value:
        return _decode_typed(value)
    if value.keys() == _TENSOR_KEYS and isinstance(value["data"], str):
        return _decode_tensor(**value)
    samples, num_bits = value.get("samples"), value.get("num_bits")
    if isinstance(samples, list) and isinstance(num_bits, int):
        return Bits.from_samples(samples, num_bits)
    return {name: decode_value(item) for name, item in value.items()}


def to_plain(value: Any) -> Any:
    """Return a decoded value as JSON has it.

    Arrays become nested lists. Complex numbers become `{"real": …, "imag": …}`, where an array has
    two nested lists. Registers become `{"num_bits": …, "bits": …}`.
    """
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, Bits):
        return {"num_bits": value.num_bits, "bits": value.unpack().tolist()}
    if isinstance(value, complex):
        return {"real": value.real, "imag": value.imag}
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "c":
            return {"real": value.real.tolist(), "imag": value.imag.tolist()}
        return value.tolist()
    return value


def arrays_of(value: Any, name: str = "") -> Iterator[tuple[str, _Array]]:
    """Yield the arrays in a decoded value, with their names, such as `error.rates`."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, Bits):
        yield name, value.unpack()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from arrays_of(item, f"{name}.{key}" if name else key)


def _decode_typed(value: Mapping[str, Any]) -> Any:
    kind, content = value["__type__"], value["__value__"]
    if kind == "ndarray":
        return _decode_ndarray(content)
    if kind == "complex":
        return complex(*content)
    if kind == "BitArray":
        return Bits(decode_value(content["array"]), int(content["num_bits"]))
    if kind == "DataBin":
        return decode_value(content["fields"])
    if isinstance(content, str) and kind != "datetime":  # such as a circuit in QPY
        return value
    return decode_value(content)


def _decode_ndarray(content: Any) -> Any:
    if not isinstance(content, str):  # an array of objects
        return np.array(decode_value(content))
    if content.islower():  # the name of an extrapolator; zlib's header has capitals in base64
        return content
    compressed = base64.b64decode(content, validate=True)
    array: _Array = np.load(io.BytesIO(zlib.decompress(compressed)), allow_pickle=False)
    return array


def _decode_tensor(data: str, shape: list[int], dtype: str) -> _Array:
    kind = np.dtype(_TENSOR_TYPES[dtype])
    count = math.prod(shape)
    raw = base64.b64decode(data, validate=True)
    with suppress(zlib.error):  # newer versions of the schemas compress
        raw = zlib.decompress(raw)
    if dtype == "bool":
        bits = np.unpackbits(np.frombuffer(raw, kind), bitorder="little")[:count]
        return bits.astype(bool).reshape(shape)
    return np.frombuffer(raw, kind).reshape(shape)
