"""Results are independent of one another, unless a seed makes them reproducible."""

from __future__ import annotations

from typing import Any

import pytest
from emulator_clients import bell, connect, primitive, run
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

from qrmi_workflows.emulator import start_emulator


def equal_pubs(resource, program: str, **options: Any) -> tuple[Any, ...]:
    """Run a job of three equal PUBs; return the values of each."""
    if program == "sampler":
        pub = [bell(), None, 1000]
    else:
        observables = ["Z", "Y"] * 4  # enough that no two results are equal by chance
        pub = ["OPENQASM 3.0; include 'stdgates.inc'; h $0;", observables, None, 0.03]
    payload = primitive(program, [pub] * 3, options=options)
    results = [item.data for item in ResultDecoder.decode(run(resource, payload))]
    if program == "sampler":
        return tuple(data.meas.array.tobytes() for data in results)
    return tuple(tuple(data.evs) for data in results)


@pytest.mark.parametrize("program", ["sampler", "estimator"])
def test_equal_pubs_and_repeated_jobs_are_independent(tmp_path, program):
    """As on a QPU, no two results are the same."""
    with start_emulator(tmp_path) as emulator:
        resource = connect(emulator, "ibm_fez")
        results = equal_pubs(resource, program) + equal_pubs(resource, program)
    assert len(set(results)) == 6


@pytest.mark.parametrize("program", ["sampler", "estimator"])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_seed_in_the_options_makes_each_pub_reproducible(qpu, program, seed):
    """The seed may be 0; equal PUBs of one job still differ."""
    resource = qpu("ibm_fez")
    first, second = (
        equal_pubs(resource, program, simulator={"seed_simulator": seed}) for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3
    assert equal_pubs(resource, program, simulator={"seed_simulator": seed + 1}) != first


def test_a_seeded_emulator_repeats_its_results(tmp_path):
    """Identical jobs give identical results, also in another emulator; 0 is a seed too."""
    config = tmp_path / "emulator.toml"
    config.write_text("seed = 0\n[qpus.ibm]\ntype = 'ibm-quantum-compute-service'\n")
    results = []
    for state in ("first", "second"):
        with start_emulator(tmp_path / state, config=config) as emulator:
            results += [equal_pubs(connect(emulator, "ibm"), "sampler") for _ in range(2)]
    assert len(set(results)) == 1
    assert len(set(results[0])) == 3
