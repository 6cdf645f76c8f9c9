"""The energy of N2 by sample-based quantum diagonalisation, as a chain of Parsl apps.

This is the workflow of `Snakefile` in Parsl. The QPU is requested when its circuit is ready, not
while the molecule is being prepared (`init_blocks=0`).

    qpu target ibm_fez -o target.json
    python sqd.py target.json -o n2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import parsl
from parsl import File, python_app
from parsl.dataflow.futures import AppFuture
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.providers import SlurmProvider

from parsl_ext import qpu_config, run_payload


@python_app(executors=["classical"])
def molecule(bond_length: float, *, outputs: Any = ()) -> None:
    import numpy as np
    from nitrogen import nitrogen

    np.savez(outputs[0].filepath, **nitrogen(bond_length))


@python_app(executors=["classical"])
def circuit(*, inputs: Any = (), outputs: Any = ()) -> None:
    from pathlib import Path

    import numpy as np
    from pairs import save, transpile

    target = Path(inputs[1]).read_text(encoding="utf-8")
    save(transpile(np.load(inputs[0].filepath), target), Path(outputs[0]))


@python_app(executors=["classical"])
def energy(*, inputs: Any = (), outputs: Any = ()) -> None:
    import json
    from pathlib import Path

    import numpy as np
    from subspace import plot, summary

    from qrmi_workflows import QuantumResult

    document = summary(np.load(inputs[0].filepath), QuantumResult.load(inputs[1]))
    Path(outputs[0]).write_text(json.dumps(document, indent=1), encoding="utf-8")
    plot(document["convergence"], document["exact"], document["ccsd"], Path(outputs[1]))


def chain(target: Path, folder: Path, bond_length: float, shots: int) -> AppFuture:
    """Connect the apps by their files, and return the last one's future."""

    def file(name: str) -> File:
        return File(str(folder / name))

    prepared = molecule(bond_length, outputs=[file("molecule.npz")]).outputs[0]
    ready = circuit(inputs=[prepared, File(str(target))], outputs=[file("circuit.qpy")]).outputs[0]
    result = run_payload(ready, shots=shots, outputs=[file("result.json")]).outputs[0]
    outputs = [file("energy.json"), file("convergence.png")]
    return energy(inputs=[prepared, result], outputs=outputs)


def classical(arguments: argparse.Namespace) -> ParslExecutor:
    """Return one of Parsl's own executors: Slurm jobs without a QPU, or a local thread."""
    if arguments.local:
        return ThreadPoolExecutor(label="classical", max_threads=1)
    # The workers import the modules beside this file.
    worker_init = f"export PYTHONPATH={Path(__file__).parent.resolve()}:$PYTHONPATH"
    provider = SlurmProvider(exclusive=False, cores_per_node=1, worker_init=worker_init)
    return HighThroughputExecutor(
        label="classical", provider=provider, address=arguments.address, max_workers_per_node=1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the QPU's target, from `qpu target`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the output folder")
    parser.add_argument("--qpu", default="ibm_fez")
    parser.add_argument("--bond-length", type=float, default=1.09, help="in ångström")
    parser.add_argument("--shots", type=int, default=10_000)
    parser.add_argument("--address", help="this machine's address as seen from the blocks")
    parser.add_argument("--local", action="store_true", help="run without Slurm")
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    config = qpu_config(
        arguments.qpu,
        local=arguments.local,
        address=arguments.address,
        executors=[classical(arguments)],
        run_dir=str(arguments.output / "parsl"),
        init_blocks=0,
        qpu_idletime=0,  # there is one call for the QPU
    )
    target, folder = arguments.target.resolve(), arguments.output.resolve()
    with parsl.load(config):
        chain(target, folder, arguments.bond_length, arguments.shots).result()


if __name__ == "__main__":
    main()
