"""The antennas example: its graph, its sweep, and how it reads the QPU's result."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from itertools import combinations
from math import dist
from pathlib import Path

import pulser
import pytest
from pulser.devices import AnalogDevice
from pulser_simulation import QutipBackendV2

from qrmi_workflows import Payload

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "mis"))
antennas, sweep, solution = map(import_module, ("antennas", "sweep", "solution"))

TARGET = json.dumps([{"device_type": "FRESNEL", "specs": AnalogDevice.to_abstract_repr()}])


def test_atoms_within_reach_are_exactly_those_that_block_each_other() -> None:
    radius = AnalogDevice.rydberg_blockade_radius(sweep.RABI_FREQUENCY)
    pairs = list(combinations(range(len(antennas.SITES)), 2))
    blocked = [(a, b) for a, b in pairs if dist(antennas.SITES[a], antennas.SITES[b]) < radius]
    assert blocked == antennas.EDGES
    assert 0 < len(blocked) < len(pairs)


def test_the_exact_answer_is_the_three_corners_and_the_middle() -> None:
    best = antennas.exact()
    corners = (0, 3, 9)
    assert [best[corner] for corner in corners] == ["1", "1", "1"]
    assert best.count("1") == 4
    assert antennas.is_independent(best)
    assert not any(
        antennas.is_independent("".join("1" if i in five else "0" for i in range(10)))
        for five in combinations(range(10), 5)
    )


def test_a_set_with_interfering_antennas_is_never_chosen() -> None:
    assert not antennas.is_independent("1100000000")
    assert antennas.largest(["1111111111", "1000000000"]) == "1000000000"
    assert antennas.largest(["1111111111"]) == ""


def test_the_solution_has_its_share_of_the_samples() -> None:
    answer = solution.solution({"1111111111": 700, antennas.exact(): 200, "0000000000": 100})
    assert answer == {"found": antennas.exact(), "size": 4, "exact_size": 4, "share": 0.2}


def test_the_sweep_finds_the_exact_answer() -> None:
    """Simulate the payload's sequence: the maximum independent set is the likeliest outcome."""
    payload = Payload.from_content(sweep.sweep_payload(TARGET, runs=1000))
    sequence = pulser.Sequence.from_abstract_repr(json.dumps(payload.content["sequence"]))
    counts = QutipBackendV2(sequence).run().final_bitstrings
    answer = solution.solution(counts)
    assert (payload.program, payload.content["job_runs"]) == ("pulser", 1000)
    assert answer["size"] == answer["exact_size"]
    assert answer["share"] == pytest.approx(0.5, abs=0.1)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    solution.plot(antennas.exact(), tmp_path / "solution.png")
    assert (tmp_path / "solution.png").read_bytes().startswith(b"\x89PNG")
