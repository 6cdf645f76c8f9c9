"""The example of N2: its parts against exact values, and both of its workflows on a real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from emulated_site import emulated_site
from pages import EXAMPLES, example_command
from pyscf import gto, lib, mcscf, scf
from qiskit import qpy, transpile
from qiskit.primitives import BitArray
from qiskit.quantum_info import Statevector
from qiskit_aer.primitives import SamplerV2

from qrmi_workflows import QuantumResult

sys.path.insert(0, str(EXAMPLES / "n2"))
nitrogen, pairs, subspace = map(import_module, ("nitrogen", "pairs", "subspace"))

BOND_LENGTH = 1.09
CHEMICAL_ACCURACY = 1.6e-3  # hartree
STRINGS = [
    "".join("1" if i in five else "0" for i in range(10)) for five in combinations(range(10), 5)
]
SECONDS = 400
EMULATOR = """
seed = 7

[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
strict = true
"""


@pytest.fixture(scope="module")
def exact() -> float:
    """The energy by PySCF's own driver of the active space, without symmetry."""
    with lib.with_omp_threads(1):
        molecule = gto.M(atom=f"N 0 0 0; N 0 0 {BOND_LENGTH}", basis="6-31g", verbose=0)
        return float(mcscf.CASCI(scf.RHF(molecule).run(), 10, 10).kernel()[0])


@pytest.fixture(scope="module")
def molecule() -> dict[str, Any]:
    answer: dict[str, Any] = nitrogen.nitrogen(BOND_LENGTH)
    return answer


def test_the_molecules_exact_energy_is_that_of_its_active_space(
    molecule: dict[str, Any], exact: float
) -> None:
    assert molecule["exact"] == pytest.approx(exact, abs=1e-7)
    assert exact < molecule["ccsd"] < molecule["hartree_fock"]


def test_a_pair_hops_with_the_probability_of_its_amplitude() -> None:
    circuit = pairs.ansatz(np.array([[-0.25]])).remove_final_measurements(inplace=False)
    # Qubits: lower and upper orbital of spin up, then of spin down.
    assert Statevector(circuit).probabilities_dict() == pytest.approx({"0101": 0.8, "1010": 0.2})


def test_the_circuit_keeps_the_number_of_electrons() -> None:
    amplitudes = np.array([[0.1, 0.2, 0.05], [0.3, 0.1, 0.2]])
    circuit = pairs.ansatz(amplitudes).remove_final_measurements(inplace=False)
    sampled = {
        state
        for state, weight in Statevector(circuit).probabilities_dict().items()
        if weight > 1e-9
    }
    assert {state[:5].count("1") for state in sampled} == {2}
    assert all(state[:5] == state[5:] for state in sampled)
    assert len(sampled) == 10  # all ways to put two pairs into five orbitals


def test_all_determinants_give_the_exact_energy(molecule: dict[str, Any], exact: float) -> None:
    samples = BitArray.from_counts(dict.fromkeys((string * 2 for string in STRINGS), 1))
    energy, dimension = subspace.diagonalise(molecule, samples)
    assert energy == pytest.approx(exact, abs=1e-6)
    assert dimension == 252**2


def test_samples_with_wrong_bits_are_repaired(molecule: dict[str, Any], exact: float) -> None:
    """Two bits in a hundred are flipped, so that a third of the samples have a wrong bit."""
    circuit = transpile(pairs.ansatz(molecule["pairs"]), basis_gates=["cx", "rz", "sx", "x"])
    bits = SamplerV2(seed=1).run([circuit], shots=10_000).result()[0].data.meas.to_bool_array()
    flips = np.random.default_rng(1).random(bits.shape) < 0.02
    energy, _ = subspace.diagonalise(molecule, BitArray.from_bool_array(bits ^ flips))
    assert exact <= energy < exact + CHEMICAL_ACCURACY


@dataclass(frozen=True)
class Runs:
    """The output of both workflows."""

    folder: Path
    leases: list[dict[str, Any]]

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Run the commands of examples/README.md, both at once, in folders of their own."""
    folder = tmp_path_factory.mktemp("n2")
    with emulated_site(tmp_path_factory.mktemp("site"), EMULATOR) as box:
        environment = {**os.environ, **box.environment(), "QPU_STATE": str(folder / "state")}
        tools = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda program: execute(
                        example_command(program),
                        Path(copytree(EXAMPLES / "n2", folder / Path(program).stem)),
                        {**environment, "PATH": tools},
                    ),
                    ("n2", "n2/sqd.py"),
                )
            )
        files = (folder / "state" / "leases").glob("*.jsonl")
        leases = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        yield Runs(folder, leases)


def execute(script: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("output", ["n2", "sqd/n2"], ids=["snakemake", "parsl"])
def test_the_sampled_energy_is_exact_within_chemical_accuracy(
    runs: Runs, output: str, exact: float
) -> None:
    document = runs.read(f"{output}/energy.json")
    assert document["exact"] == pytest.approx(exact, abs=1e-7)
    assert exact <= document["energy"] < exact + CHEMICAL_ACCURACY
    assert document["energy"] < document["ccsd"]
    few, *_, every = document["convergence"]
    assert (few["samples"], every["samples"]) == (100, 10_000)
    assert few["energy"] > exact + CHEMICAL_ACCURACY
    assert every["determinants"] < 252**2
    picture = (runs.folder / output / "convergence.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.timeout(2 * SECONDS)
def test_the_circuit_and_its_energy_are_as_the_page_says(runs: Runs, exact: float) -> None:
    page = " ".join((EXAMPLES / "README.md").read_text(encoding="utf-8").split())
    with (runs.folder / "n2/circuit.qpy").open("rb") as stream:
        (circuit,) = qpy.load(stream)
    two = [item for item in circuit.data if item.operation.num_qubits == 2]
    used = {qubit for item in two for qubit in item.qubits}
    assert f"about 130 two-qubit gates on {len(used)} qubits" in page
    assert 125 < len(two) < 135
    document = runs.read("n2/energy.json")
    assert document["convergence"][-1]["determinants"] == pytest.approx(165**2, rel=0.1)
    assert "energy was 0.04 to 0.4 mHa above the exact one" in page
    assert 0.01e-3 < document["energy"] - exact < 0.6e-3
    assert "CCSD, from whose amplitudes the circuit is built, is 2.3 mHa above it" in page
    assert document["ccsd"] - exact == pytest.approx(2.28e-3, abs=1e-5)


@pytest.mark.timeout(2 * SECONDS)
def test_each_workflow_has_one_quantum_step(runs: Runs) -> None:
    results = [
        QuantumResult.load(runs.folder / name) for name in ("n2/result.json", "sqd/n2/result.json")
    ]
    assert len({result.task_id for result in results}) == 2
    assert all(sum(result.counts().values()) == 10_000 for result in results)
    assert [lease["tasks"] for lease in runs.leases] == [1, 1]
