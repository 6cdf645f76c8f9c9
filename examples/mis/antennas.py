"""The largest set of antennas that do not disturb each other: a maximum independent set.

Two antennas within reach of each other must not share a channel. Choosing as many as possible that
may is a maximum independent set of the graph of reaches.
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
"""Ten sites in a triangle. All lengths are in µm, as atoms stand for the antennas."""

EDGES = [(a, b) for a, b in combinations(range(len(SITES)), 2) if dist(SITES[a], SITES[b]) < REACH]


def is_independent(chosen: str) -> bool:
    """Say whether no two of the chosen, written as 0s and 1s, are within reach."""
    return not any(chosen[a] == chosen[b] == "1" for a, b in EDGES)


def largest(candidates: Iterable[str]) -> str:
    """Return the independent candidate with the most members; "" when there is none."""
    return max(filter(is_independent, candidates), key=lambda chosen: chosen.count("1"), default="")


def exact() -> str:
    """Return a maximum independent set, having tried every subset."""
    return largest("".join(bits) for bits in product("01", repeat=len(SITES)))
