"""Payloads that share a task: each result is that of its own circuits, as if it had run alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from servers import RESULT_SETTINGS, servers, to_toml

from qrmi_workflows import Coalesce, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import PayloadError, RequestError
from qrmi_workflows.lease.record import LeaseRecord

TYPES = {"compute": "ibm-quantum-compute-service", "system": "ibm-quantum-system"}
SERVERS = {
    f"{name}_{'_'.join(server) or 'default'}": (type_, server)
    for name, type_ in TYPES.items()
    for server in servers(type_, results=True)
    if set(server) <= RESULT_SETTINGS | {"finished_jobs_hold_lanes", "repeated_jobs_accepted"}
}
TURN = 'OPENQASM 3.0; include "stdgates.inc"; input float a; rx(a) $0;'


@pytest.fixture(scope="module")
def ibm(tmp_path_factory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("coalescing")
    (folder / "emulator.toml").write_text(
        "".join(
            f'[qpus.{name}]\ntype = "{type_}"\nexact = true\nlanes = 2\n'
            f"server = {to_toml(server)}\n"
            for name, (type_, server) in SERVERS.items()
        )
        + "".join(
            f'[qpus.{name}_sampled]\ntype = "{type_}"\nlanes = 2\n' for name, type_ in TYPES.items()
        )
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def lease_of(ibm, tmp_path, monkeypatch):
    monkeypatch.setenv("QPU_CONFIG", str(ibm.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return open_lease


@pytest.fixture
def tasks(ibm):
    """Count the tasks since the test started."""
    before = ibm.counters()["tasks"]["accepted"]
    return lambda: ibm.counters()["tasks"]["accepted"] - before


def flips(low: str, high: str) -> str:
    """Return a circuit that gives these bits, in two registers, in every shot."""
    bits = [*reversed(low), *reversed(high)]
    lines = [f"x ${qubit};" for qubit, bit in enumerate(bits) if bit == "1"]
    lines += [f"low[{index}] = measure ${index};" for index in range(len(low))]
    lines += [f"high[{index}] = measure ${len(low) + index};" for index in range(len(high))]
    head = f'OPENQASM 3.0; include "stdgates.inc"; bit[{len(low)}] low; bit[{len(high)}] high;'
    return "\n".join([head, *lines])


def sampler(*circuits: str, shots: int = 3, **parameters: Any) -> dict[str, Any]:
    pubs = [[circuit, None, shots] for circuit in circuits]
    return {"program_id": "sampler", "parameters": {"pubs": pubs, **parameters}}


def estimator(circuit: str, *observables: str, **parameters: Any) -> dict[str, Any]:
    pubs = [[circuit, list(observables)]]
    return {
        "program_id": "estimator",
        "parameters": {"pubs": pubs, "precision": 0.01, **parameters},
    }


@pytest.mark.parametrize("qpu", SERVERS)
@pytest.mark.parametrize("support_qiskit", [True, False])
def test_each_payload_gets_the_samples_of_its_own_circuits(lease_of, tasks, qpu, support_qiskit):
    words = [("01", "1"), ("10", "0"), ("11", "1"), ("00", "1")]
    payloads = [sampler(flips(*word), support_qiskit=support_qiskit) for word in words]
    payloads.append(sampler(*[flips(*word) for word in words[:2]], support_qiskit=support_qiskit))

    with lease_of(qpu) as lease:
        results = list(lease.map(payloads, coalesce=True))

    assert tasks() == 1
    assert len({result.task_id for result in results}) == 1
    for result, (low, high) in zip(results, [*words, words[0]], strict=False):
        assert result.counts("low") == {low: 3}
        assert result.counts("high") == {high: 3}
        assert result.to_primitive_result()[0].data.low.get_counts() == {low: 3}
    assert results[4].counts("low", pub=1) == {"10": 3}
    assert [len(result.data) for result in results] == [1, 1, 1, 1, 2]
    assert len({result.payload_digest for result in results}) == 5


@pytest.mark.parametrize("qpu", ["compute_default", "system_encodes_if_asked"])
def test_each_payload_gets_the_estimates_of_its_own_observables(lease_of, tasks, qpu):
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; x $0; h $2;'
    observables = [("IIZ",), ("IZI", "XII"), ("IZZ", "ZII", "XIZ")]
    payloads = [estimator(circuit, *each) for each in observables]
    turned = {
        "program_id": "estimator",
        "parameters": {"pubs": [[TURN, "Z", [[0.5], [1.0]], 0.01]]},
    }

    with lease_of(qpu) as lease:
        *results, last = lease.map([*payloads, turned], coalesce=True)

    assert tasks() == 1
    expected = [[-1.0], [1.0, 1.0], [-1.0, 0.0, -1.0]]
    for result, values in zip(results, expected, strict=True):
        assert result.expectation_values()[0] == pytest.approx(values, abs=1e-9)
    assert last.expectation_values()[0] == pytest.approx(np.cos([0.5, 1.0]), abs=1e-9)
    assert last.to_primitive_result()[0].data.evs.shape == (2,)


def test_what_does_not_agree_goes_alone(lease_of, tasks):
    """Shots, the encoding, an option, and a seed, which makes sense for one payload only."""
    circuit = flips("1", "0")
    payloads = [
        sampler(circuit),
        sampler(circuit, shots=4),
        sampler(circuit, support_qiskit=True),
        sampler(circuit, options={"dynamical_decoupling": {"enable": True}}),
        sampler(circuit, options={"simulator": {"seed_simulator": 5}}),
        sampler(flips("0", "1")),
        estimator(circuit.partition("low[0]")[0], "ZI"),
    ]

    with lease_of("compute_default") as lease:
        *results, estimated = lease.map(payloads, coalesce=True)

    assert tasks() == 6
    assert results[0].task_id == results[5].task_id
    assert [result.counts("low") for result in results] == [
        {"1": 3}, {"1": 4}, {"1": 3}, {"1": 3}, {"1": 3}, {"0": 3},
    ]  # fmt: skip
    assert estimated.expectation_values()[0] == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        (Coalesce(max_pubs=4), 3),
        (Coalesce(max_pubs=1), 10),
        (Coalesce(max_shots=9), 4),
        (Coalesce(max_shots=1), 10),
        (True, 1),
        (False, 10),
        (None, 10),
    ],
)
def test_a_task_is_within_the_limits(lease_of, tasks, limits, count):
    words = [f"{number:04b}" for number in range(10)]

    with lease_of("compute_default") as lease:
        results = list(lease.map([sampler(flips(w, "1")) for w in words], coalesce=limits))

    assert tasks() == count
    assert [result.counts("low") for result in results] == [{word: 3} for word in words]


def test_a_leases_own_default_holds_for_each_submission(lease_of, tasks):
    with lease_of("compute_default", coalesce=Coalesce(wait=60.0, max_pubs=3)) as lease:
        futures = [lease.submit(sampler(flips(word, "1"))) for word in ("00", "01", "10")]
        alone = lease.run(sampler(flips("11", "0")), coalesce=False)

        assert [future.result().counts("low") for future in futures] == [
            {"00": 3}, {"01": 3}, {"10": 3},
        ]  # fmt: skip
    assert alone.counts("low") == {"11": 3}
    assert tasks() == 2


def test_leases_of_several_steps_share_tasks(lease_of, tasks):
    limits = Coalesce(wait=60.0, max_pubs=2)
    with (
        lease_of("compute_default", coalesce=limits) as lease,
        lease.for_step("one") as one,
        lease.for_step("other") as other,
    ):
        futures = [each.submit(sampler(flips("1", "0"))) for each in (one, other)]
        assert [future.result().counts("low") for future in futures] == [{"1": 3}] * 2

    assert tasks() == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"max_pubs": 0}, {"max_pubs": 1.5}, {"max_pubs": True}, {"max_shots": -1}, {"wait": -1},
        {"wait": float("inf")}, {"wait": float("nan")}, {"wait": "1"},
    ],
)  # fmt: skip
def test_nonsense_limits_are_refused(limits):
    with pytest.raises(RequestError, match="Correct it, or leave it out"):
        Coalesce(**limits)


@pytest.mark.parametrize("limits", ["yes", 5, {"max_pubs": 3}])
def test_what_is_not_a_limit_is_refused_before_anything_is_submitted(lease_of, tasks, limits):
    with pytest.raises(RequestError, match="must be True, False or limits"):
        lease_of("compute_default", coalesce=limits)
    with lease_of("compute_default") as lease, pytest.raises(RequestError, match="must be True"):
        lease.map([sampler(flips("1", "0"))], coalesce=limits)

    assert tasks() == 0


def test_an_invalid_payload_is_refused_before_any_task_starts(lease_of, tasks):
    payloads = [sampler(flips("1", "0")), sampler("OPENQASM 3.0; bit[1] c;")]
    with lease_of("compute_default") as lease, pytest.raises(PayloadError):
        lease.map(payloads, coalesce=True)

    assert tasks() == 0


@pytest.mark.parametrize("seed", range(4))
def test_in_random_mixes_every_result_is_the_right_one(lease_of, tasks, seed):
    dice = random.Random(seed)
    payloads, expected = [], []
    for _ in range(25):
        words = ["".join(dice.choices("01", k=5)) for _ in range(dice.randint(1, 3))]
        shots, asks = dice.choice([3, 3, 3, 8]), dice.choice([True, True, False])
        payloads.append(
            sampler(*[flips(w[:2], w[2:]) for w in words], shots=shots, support_qiskit=asks)
        )
        expected.append([({w[:2]: shots}, {w[2:]: shots}) for w in words])
    limits = Coalesce(max_pubs=dice.randint(2, 30))

    with lease_of(dice.choice(["compute_default", "system_default"])) as lease:
        results = list(lease.map(payloads, coalesce=limits))

    assert [
        [(r.counts("low", pub=pub), r.counts("high", pub=pub)) for pub in range(len(r.data))]
        for r in results
    ] == expected
    assert tasks() == len({result.task_id for result in results})
    sizes = Counter()
    for result in results:
        sizes[result.task_id] += len(result.data)
    assert max(sizes.values()) <= limits.max_pubs


@pytest.mark.parametrize("qpu", ["compute_default", "system_finished_jobs_hold_lanes"])
def test_one_task_of_many_payloads_counts_as_one(lease_of, tasks, tmp_path, monkeypatch, qpu):
    """In the lease record, at the vendor, and in the lanes that ended tasks may hold there."""
    monkeypatch.setenv("QPU_LEASE_RECORD", str(tmp_path / "records.jsonl"))
    with lease_of(qpu) as lease:
        for _ in range(4):
            results = list(lease.map([sampler(flips(w, "1")) for w in ("00", "01")], coalesce=True))

    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    record = LeaseRecord.from_json(line)
    assert (record.tasks, tasks()) == (4, 4)
    assert record.task_ids[-1] == results[0].task_id
    assert not list((tmp_path / "state/journal/coalesced").glob("*.json"))


def test_the_environment_turns_it_on(lease_of, tasks, monkeypatch):
    monkeypatch.setenv("QPU_COALESCE", "1")
    payloads = [sampler(flips(word, "1")) for word in ("01", "10", "11")]
    with lease_of("compute_default", step="environment") as lease:
        assert len(list(lease.map(payloads))) == 3

    assert tasks() == 1


def eigenvalue(pauli: str, bits: str) -> float:
    """Return the value of a product of Zs in a basis state; qubit 0 is the last letter of both."""
    return (-1.0) ** sum(
        letter == "Z" and bit == "1" for letter, bit in zip(pauli, bits, strict=True)
    )


def prepare(bits: str) -> str:
    lines = [f"x ${qubit};" for qubit, bit in enumerate(reversed(bits)) if bit == "1"]
    lines += [f"id ${qubit};" for qubit in range(len(bits))]  # or it would have fewer qubits
    return "\n".join(['OPENQASM 3.0; include "stdgates.inc";', *lines])


def stated_somewhere(
    dice: random.Random, name: str, value: float, pubs: list[list[Any]]
) -> dict[str, Any]:
    """State the shots or the precision of PUBs in one of three ways; return the parameters."""
    way = dice.choice(["pub", "payload", "both"])
    if way == "payload":
        return {"pubs": pubs, name: value}
    other = {name: value * 2} if way == "both" else {}  # a PUB's own outranks it
    return {"pubs": [[*pub, value] for pub in pubs], **other}


def random_estimate(dice: random.Random) -> tuple[dict[str, Any], list[Any], tuple[Any, ...]]:
    """Return a payload, the values of its observables, and what its task must agree in."""
    pubs, values, precision = [], [], dice.choice([0.01, 0.02])
    for _ in range(dice.randint(1, 3)):
        bits = "".join(dice.choices("01", k=3))
        paulis = ["".join(dice.choices("IZ", k=3)) for _ in range(dice.randint(1, 4))]
        factors = [dice.choice([1.0, 0.5, -2.0]) for _ in paulis]
        as_sums = dice.random() < 0.5
        pubs.append(
            [
                prepare(bits),
                [{p: f} for p, f in zip(paulis, factors, strict=True)] if as_sums else paulis,
                None,
            ]
        )
        values.append(
            [
                (factor if as_sums else 1.0) * eigenvalue(pauli, bits)
                for pauli, factor in zip(paulis, factors, strict=True)
            ]
        )
    level = dice.choice([0, 1])
    parameters = stated_somewhere(dice, "precision", precision, pubs)
    options = {"dynamical_decoupling": {"enable": bool(level)}}
    payload = {"program_id": "estimator", "parameters": {**parameters, "options": options}}
    return payload, values, (precision, level)


@pytest.mark.parametrize("qpu", ["compute_sampled", "system_sampled"])
def test_every_estimate_has_its_own_observables_precision_and_options(lease_of, tasks, qpu):
    dice = random.Random(qpu)
    cases = [random_estimate(dice) for _ in range(24)]

    with lease_of(qpu) as lease:
        results = list(lease.map([payload for payload, _, _ in cases], coalesce=True))

    shared: dict[str, set[tuple[Any, ...]]] = {}
    for result, (_, values, terms) in zip(results, cases, strict=True):
        shared.setdefault(result.task_id, set()).add(terms)
        for pub, each in enumerate(values):
            assert result.expectation_values(pub=pub)[0] == pytest.approx(each)
        precisions = {pub.metadata["target_precision"] for pub in result.to_primitive_result()}
        assert precisions == {terms[0]}
    assert all(len(terms) == 1 for terms in shared.values())
    assert tasks() == len(shared) == len({terms for _, _, terms in cases}) == 4


def test_every_sample_has_its_own_shots_wherever_they_are_stated(lease_of, tasks):
    dice = random.Random(7)
    payloads, expected = [], []
    for _ in range(24):
        words, shots = dice.choices(["01", "10", "11"], k=dice.randint(1, 3)), dice.choice([2, 5])
        pubs: list[list[Any]] = [[flips(word, "1"), None] for word in words]
        parameters = stated_somewhere(dice, "shots", shots, pubs)
        payloads.append({"program_id": "sampler", "parameters": parameters})
        expected.append([{word: shots} for word in words])

    with lease_of("compute_default") as lease:
        results = list(lease.map(payloads, coalesce=True))

    assert [[r.counts("low", pub=pub) for pub in range(len(r.data))] for r in results] == expected
    assert tasks() == 2
