"""The largest set of antennas that do not interfere: a maximum independent set.

Two antennas within reach of each other must not share a channel. The largest set of antennas that
can share one is a maximum independent set of the graph that joins antennas within reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from math import dist, sqrt

SPACING = 6.0
REACH = 7.0
SITES = [
    (SPACING * (column + row / 2), SPACING * row * sqrt(3) / 2)
    for row in range(4)
    for column in range(4 - row)
]
"""Ten sites in a triangle. Lengths are in µm, because atoms represent the antennas."""

EDGES = [(a, b) for a, b in combinations(range(len(SITES)), 2) if dist(SITES[a], SITES[b]) < REACH]


def is_independent(chosen: str) -> bool:
    """Return whether no two chosen antennas, marked by 1 in a string of 0s and 1s, interfere."""
    return not any(chosen[a] == chosen[b] == "1" for a, b in EDGES)


def largest(candidates: Iterable[str]) -> str:
    """Return the largest independent candidate, or an empty string if none is independent."""
    return max(filter(is_independent, candidates), key=lambda chosen: chosen.count("1"), default="")


def exact() -> str:
    """Return a maximum independent set, found by trying every subset."""
    return largest("".join(bits) for bits in product("01", repeat=len(SITES)))
