"""The energy of H2 in one stage of two executors: a loop between a QPU and a classical node.

Each round measures energies on the QPU, all at once, and computes the next angle on a classical
node. Both executors belong to the stage "h2": one small job, the keeper, holds the QPU, and the
blocks of both wait in Slurm's queue until it is ready, so no node waits for the QPU.

    qpu target ibm_fez -o target.json
    python stage.py target.json -o stage.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import parsl
from hydrogen import ANGLES, exact, hamiltonian
from parsl import python_app
from parsl.executors import HighThroughputExecutor
from transpile import estimator_payload, place, transpile

from parsl_ext import BlockErrors, QPUSlurmProvider, QPUStage, qpu_app, qpu_config


@qpu_app
def energy(payload: dict[str, Any], *, lease: Any) -> float:
    """Measure an energy. The app runs in a quantum block, with the stage's lease."""
    return float(lease.run(payload).expectation_values()[0][0])


@python_app(executors=["classical"])
def best_angle(*, inputs: Any = ()) -> float:
    """Compute the angle of the lowest energy in a classical block."""
    from hydrogen import minimum

    return minimum(inputs)[1]


def rounds(bond_length: float, target: str, precision: float) -> dict[str, Any]:
    """Measure at three angles, compute the best angle, and measure there."""
    operator, circuit = hamiltonian(bond_length), transpile(target)
    observable = place(operator, circuit)

    def measure(angle: float) -> Any:
        return energy(estimator_payload(circuit, observable, [angle], precision))

    angle = best_angle(inputs=[measure(each) for each in ANGLES]).result()
    lowest = measure(angle).result()
    return {"angle": angle, "energy": lowest, "exact": exact(operator)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the QPU's target, from `qpu target`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--qpu", default="ibm_fez")
    parser.add_argument("--bond-length", type=float, default=0.735, help="in ångström")
    parser.add_argument("--precision", type=float, default=1e-4, help="in hartree")
    parser.add_argument("--address", help="this machine's address as seen from the blocks")
    arguments = parser.parse_args()
    stage = QPUStage("h2", qpu=arguments.qpu, mode="dedicated")  # each round waits for the last
    # The workers import the modules beside this file.
    worker_init = f"export PYTHONPATH={Path(__file__).parent.resolve()}:$PYTHONPATH"
    classical = HighThroughputExecutor(
        label="classical",
        provider=QPUSlurmProvider(qpu=None, stage=stage, worker_init=worker_init),
        block_error_handler=BlockErrors(),
        address=arguments.address,
        max_workers_per_node=1,
    )
    config = qpu_config(
        arguments.qpu,
        stage=stage,
        executors=[classical],
        address=arguments.address,
        run_dir=str(arguments.output.parent / "parsl-stage"),
    )
    with parsl.load(config):
        answer = rounds(
            arguments.bond_length, arguments.target.read_text(encoding="utf-8"), arguments.precision
        )
    arguments.output.write_text(json.dumps(answer, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
