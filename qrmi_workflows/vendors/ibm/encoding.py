"""IBM's encodings of values in results, decoded with NumPy alone, and registers without it.

There are three. `RuntimeEncoder` (qiskit_ibm_runtime/json.py, read in 0.51.0) writes an object as
`{"__type__": …, "__value__": …}`, and an array as base64 of zlib of NumPy's `.npy` format. Plain
JSON has samples as hexadecimal numbers and arrays as nested lists
(https://github.com/Qiskit/ibm-quantum-schemas, `sampler_result_v2_schema.json`). The programs
`executor` and `noise-learner` write an array as `{"data": …, "shape": …, "dtype": …}`
(`common/tensor.py` there).

NumPy takes 0.1 s to import, so it is imported where an array needs it: most steps only count bits.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from qrmi_workflows.vendors.ibm.arrays import is_array, load_npy, read_bytes, shape_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Bits", "arrays_of", "decode_value", "to_plain"]

_Array: TypeAlias = "np.ndarray[Any, Any]"

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
        data: The samples, one after the other, each big-endian and padded at the front.
        dimensions: (…, shots, bytes).
        num_bits: The number of bits in the register.
    """

    data: bytes = field(repr=False)
    dimensions: tuple[int, ...]
    num_bits: int

    @classmethod
    def from_samples(cls, samples: list[Any], num_bits: int) -> Bits:
        """Read samples as hexadecimal numbers, in nested lists if parameters were broadcast."""
        shape = shape_of(samples, str)
        if shape is None:
            raise ValueError("samples that are not strings, in lists of equal length")
        numbers = [int(sample, 16) for sample in _flatten(samples)]
        if any(number >> num_bits for number in numbers):
            raise ValueError(f"a sample {max(numbers):#x} in a register of {num_bits} bits")
        size = -(-num_bits // 8)
        return cls(b"".join(number.to_bytes(size) for number in numbers), (*shape, size), num_bits)

    @classmethod
    def from_array(cls, encoded: Any, num_bits: int) -> Bits:
        """Read an encoded array of bytes of the shape (…, shots, bytes)."""
        content = encoded["__value__"] if encoded["__type__"] == "ndarray" else None
        found = read_bytes(_decompress(content)) if isinstance(content, str) else None
        if found is None:
            array = decode_value(encoded)
            if array.dtype != "u1":
                raise ValueError(f"a register of type {array.dtype}")
            found = array.tobytes(), array.shape
        return cls(*found, num_bits)

    @property
    def packed(self) -> _Array:
        """The samples as an array of bytes."""
        import numpy as np

        return np.frombuffer(self.data, np.uint8).reshape(self.dimensions)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter values; without the shots."""
        *shape, _, _ = self.dimensions
        return tuple(shape)

    def __iter__(self) -> Iterator[Bits]:
        """Yield the bits for each index of the first axis."""
        first, *rest = self.dimensions
        size = math.prod(rest)
        for start in range(first):
            part = self.data[start * size : (start + 1) * size]
            yield Bits(part, tuple(rest), self.num_bits)

    def in_shape(self, shape: tuple[int, ...]) -> Bits:
        """Return the bits of one flat list of samples in the shape of the parameter values."""
        samples, size = self.dimensions
        shots, rest = divmod(samples, math.prod(shape))
        if rest:
            raise ValueError(f"{samples} samples for parameter values of shape {shape}")
        return Bits(self.data, (*shape, shots, size), self.num_bits)

    def unpack(self) -> _Array:
        """Return one number, 0 or 1, for each bit, in the shape (…, shots, bits)."""
        import numpy as np

        padding = self.dimensions[-1] * 8 - self.num_bits
        return np.unpackbits(self.packed, axis=-1)[..., padding:]


def _flatten(nested: list[Any]) -> Iterator[Any]:
    for item in nested:
        if isinstance(item, list):
            yield from _flatten(item)
        else:
            yield item


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
    if is_array(value):
        if value.dtype.kind == "c":
            return {"real": value.real.tolist(), "imag": value.imag.tolist()}
        return value.tolist()
    return value


def arrays_of(value: Any, name: str = "") -> Iterator[tuple[str, _Array]]:
    """Yield the arrays in a decoded value, with their names, such as `error.rates`."""
    if is_array(value):
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
        return Bits.from_array(content["array"], int(content["num_bits"]))
    if kind == "DataBin":
        return decode_value(content["fields"])
    if isinstance(content, str) and kind != "datetime":  # such as a circuit in QPY
        return value
    return decode_value(content)


def _decode_ndarray(content: Any) -> Any:
    if not isinstance(content, str):  # an array of objects
        import numpy as np

        return np.array(decode_value(content))
    if content.islower():  # the name of an extrapolator; zlib's header has capitals in base64
        return content
    return load_npy(_decompress(content))


def _decompress(content: str) -> bytes:
    return zlib.decompress(base64.b64decode(content, validate=True))


def _decode_tensor(data: str, shape: list[int], dtype: str) -> _Array:
    import numpy as np

    kind = np.dtype(_TENSOR_TYPES[dtype])
    count = math.prod(shape)
    raw = base64.b64decode(data, validate=True)
    with suppress(zlib.error):  # newer versions of the schemas compress
        raw = zlib.decompress(raw)
    if dtype == "bool":
        bits = np.unpackbits(np.frombuffer(raw, kind), bitorder="little")[:count]
        return bits.astype(bool).reshape(shape)
    return np.frombuffer(raw, kind).reshape(shape)
