"""Read arrays without NumPy, where that is simple, because NumPy takes 0.1 s to import."""

from __future__ import annotations

import ast
import io
import math
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["is_array", "load_npy", "read_bytes", "shape_of"]

_MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0, which NumPy writes unless the header is very long


def is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def load_npy(file: bytes) -> np.ndarray[Any, Any]:
    """Read a file in NumPy's format.

    Raises:
        ValueError, EOFError: It is malformed, or has Python objects.
    """
    import numpy as np

    array: np.ndarray[Any, Any] = np.load(io.BytesIO(file), allow_pickle=False)
    return array


def read_bytes(file: bytes) -> tuple[bytes, tuple[int, ...]] | None:
    """Read an array of bytes in NumPy's format.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

    Returns:
        The data in C order, and the shape; `None` if only NumPy can tell what it is.
    """
    if not file.startswith(_MAGIC) or len(file) < 10:
        return None
    start = 10 + struct.unpack_from("<H", file, 8)[0]
    try:
        header = ast.literal_eval(file[10:start].decode("latin-1").strip())
        kind, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        is_simple = kind == "|u1" and not is_fortran and len(file) - start == math.prod(shape)
    except (LookupError, SyntaxError, TypeError, ValueError):
        return None
    return (file[start:], tuple(shape)) if is_simple else None


def shape_of(value: Any, leaf: type | tuple[type, ...]) -> tuple[int, ...] | None:
    """Return the shape of nested lists; `None` if they are ragged, or contain other types.

    Args:
        value: The lists, or a single value.
        leaf: The types of the values, as `isinstance` takes them.
    """
    if not isinstance(value, list):
        return () if isinstance(value, leaf) else None
    if not value:
        return (0,)
    inner = shape_of(value[0], leaf)
    if inner == ():  # long lists of numbers are common
        is_regular = all(isinstance(item, leaf) for item in value)
    else:
        is_regular = inner is not None and all(shape_of(item, leaf) == inner for item in value[1:])
    return (len(value), *inner) if inner is not None and is_regular else None
