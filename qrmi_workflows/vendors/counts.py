"""Counts by bit string, in the form that results have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["to_bits", "to_register"]


def to_register(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return a register as `Vendor.decode` gives it."""
    return {"num_bits": len(next(iter(counts), "")), "counts": counts}


def to_bits(counts: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """Return one row of bits (0 or 1) for each shot, in the order of the counts."""
    import numpy as np

    rows = np.array([[int(bit) for bit in bits] for bits in counts], dtype=np.uint8)
    return np.repeat(rows, list(counts.values()), axis=0)
