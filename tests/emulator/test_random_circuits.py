"""Samples and estimates of random circuits agree with an exact computation that uses no simulator.

The limits are such that a right simulator fails with a probability below 1e-6 over all seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulator_clients import primitive, run
from qiskit import qasm3
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from random_circuits import Exact, Program, all_labels, exact, expectation, make_program, to_circuit
from scipy.stats import chi2

from qrmi_workflows.emulator.simulators import aer

SHOTS = 1000
# Runs one PUB of a program (sampler or estimator) and returns its data.
Runner = Callable[[str, list[Any]], Any]


def runner(seed: int) -> Runner:
    """Run PUBs in this process, as a worker of the emulator does."""

    def run_pub(program: str, pub: list[Any]) -> Any:
        work = {
            "program": program,
            "request": json.dumps({"pubs": [pub], "version": 2, "support_qiskit": True}),
            "seed": seed,
            "model": "fez",
            **dict.fromkeys(("noise", "exact", "strict"), False),
        }
        return ResultDecoder.decode(aer.run(work)["result"])[0].data

    return run_pub


def random_program(seed: int, *, static: bool = False, widest: int = 6) -> tuple[Program, str]:
    """Return a random program, and its export to OpenQASM as QRMI's primitives write it."""
    random = np.random.default_rng(seed + 10**6)
    program = make_program(
        seed,
        qubits=int(random.integers(1, widest + 1)),
        bits=int(random.integers(1, 6)),
        size=int(random.integers(4, 14)),
        static=static,
    )
    features = qasm3.ExperimentalFeatures.SWITCH_CASE_V1
    return program, qasm3.dumps(to_circuit(program), allow_aliasing=True, experimental=features)


def check_samples(program: Program, text: str, state: Exact, run_pub: Runner) -> None:
    """Check the joint distribution of all registers by a χ² test."""
    data = run_pub("sampler", [text, list(program.values) or None, SHOTS])
    registers = [f"r{rank}" for rank in range(len(program.registers))]
    columns = [getattr(data, name).to_bool_array(order="little") for name in registers]
    rows = np.concatenate(columns, axis=-1).reshape(SHOTS, -1).astype(int)
    bits, numbers = np.unique(rows, axis=0, return_counts=True)
    counts = {tuple(row): int(number) for row, number in zip(bits.tolist(), numbers, strict=True)}
    expected = {item: SHOTS * share for item, share in state.probabilities().items()}
    assert all(expected.get(item, 0) > 1e-8 for item in counts), "an impossible outcome"
    # The test holds for outcomes that are expected about 10 times; the rest is one outcome.
    likely = [item for item, number in expected.items() if number >= 10]
    pairs = [(counts.get(item, 0), expected[item]) for item in likely]
    rest = SHOTS - sum(number for _, number in pairs)
    if rest >= 10:
        pairs.append((SHOTS - sum(count for count, _ in pairs), rest))
    distance = sum((count - number) ** 2 / number for count, number in pairs)
    assert len(pairs) == 1 or chi2.sf(distance, len(pairs) - 1) > 1e-10


def check_estimates(
    program: Program, text: str, state: Exact, run_pub: Runner, precision: float = 0.03
) -> list[float]:
    """Check three Pauli terms and their weighted sum; return their pulls, where meaningful."""
    random = np.random.default_rng(program.qubits)
    labels = list(random.choice(all_labels(program.qubits), 3))
    weights = random.uniform(-1, 1, 3)
    total: dict[str, float] = {}
    for label, weight in zip(labels, weights, strict=True):
        total[label] = total.get(label, 0) + weight
    data = run_pub("estimator", [text, [*labels, total], list(program.values) or None, precision])
    means = [expectation(state, label) for label in labels]
    wanted = [*means, float(weights @ means)]
    pulls = []
    for value, error, want in zip(data.evs, data.stds, wanted, strict=True):
        # The second term is for outcomes that are so rare that none may have occurred.
        assert abs(value - want) <= 6.5 * error + 30 * precision**2
        if error > precision / 4:
            pulls.append((value - want) / error)
    for error, mean in zip(data.stds, means, strict=False):
        assert error == pytest.approx(precision * np.sqrt(max(0.0, 1 - mean**2)), abs=precision / 3)
    return pulls


@pytest.mark.parametrize("seed", range(6))
def test_random_dynamic_circuits(seed):
    """Mid-circuit measurement, reset, conditions, loops, switches, registers and parameters."""
    program, text = random_program(seed)
    check_samples(program, text, state := exact(program), runner(seed))
    check_estimates(program, text, state, runner(seed))


def test_random_circuits_of_gates_have_exact_values():
    """With precision 0, all Pauli terms agree to rounding."""
    for seed in range(4):
        program, text = random_program(seed, static=True, widest=3)
        labels = all_labels(program.qubits)
        data = runner(seed)("estimator", [text, labels, list(program.values) or None, 0])
        state = exact(program)
        assert data.evs == pytest.approx([expectation(state, label) for label in labels], abs=1e-9)
        assert not data.stds.any()


@pytest.mark.parametrize("seed", [101, 102])
def test_random_circuits_over_http(qpu, seed):
    """The same circuits through the client and the emulator's server."""
    resource = qpu("ibm_fez")

    def run_pub(program: str, pub: list[Any]) -> Any:
        payload = primitive(program, [pub], support_qiskit=True)
        return ResultDecoder.decode(run(resource, payload))[0].data

    program, text = random_program(seed)
    check_samples(program, text, state := exact(program), run_pub)
    check_estimates(program, text, state, run_pub)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundreds_of_random_circuits():
    """The pulls of all estimates have the spread that their standard errors claim."""
    pulls: list[float] = []
    for seed in range(1000, 1150):
        program, text = random_program(seed, widest=8 if seed % 10 == 0 else 5)
        check_samples(program, text, state := exact(program), runner(seed))
        pulls += check_estimates(program, text, state, runner(seed))
    for seed in range(2000, 2050):
        program, text = random_program(seed, static=True, widest=5)
        pulls += check_estimates(program, text, exact(program), runner(seed))
    assert len(pulls) > 300
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.2)
    assert abs(np.mean(pulls)) < 6 / np.sqrt(len(pulls))
