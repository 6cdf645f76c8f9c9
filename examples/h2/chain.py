"""The energy curve of H2 as a chain of Parsl apps: classical, quantum, classical.

This is the workflow of `Snakefile` in Parsl. Files connect the apps, and nothing waits for an
intermediate result. The QPU is requested when its payload is ready, not while it is being prepared
(`init_blocks=0`).

    qpu target ibm_fez -o target.json
    python chain.py target.json -o curve
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

BOND_LENGTHS = [0.5, 0.6, 0.735, 0.9, 1.1, 1.4, 1.8, 2.3]  # ångström
PRECISION = 1e-4  # hartree


@python_app(executors=["classical"])
def hamiltonians(bond_lengths: list[float], *, outputs: Any = ()) -> None:
    import json
    from pathlib import Path

    from prepare import prepare

    Path(outputs[0]).write_text(json.dumps(prepare(bond_lengths)), encoding="utf-8")


@python_app(executors=["classical"])
def payload(precision: float, *, inputs: Any = (), outputs: Any = ()) -> None:
    import json
    from pathlib import Path

    from transpile import curve_payload

    prepared, target = (Path(file).read_text(encoding="utf-8") for file in inputs)
    content = curve_payload(json.loads(prepared)["molecules"], target, precision)
    Path(outputs[0]).write_text(json.dumps(content), encoding="utf-8")


@python_app(executors=["classical"])
def energies(*, inputs: Any = (), outputs: Any = ()) -> None:
    import json
    from pathlib import Path

    from energies import ground_states, plot

    from qrmi_workflows import QuantumResult

    document = json.loads(Path(inputs[0]).read_text(encoding="utf-8"))
    estimates, _ = QuantumResult.load(inputs[1]).expectation_values()
    states = ground_states(document["molecules"], estimates)
    Path(outputs[0]).write_text(json.dumps(states, indent=1), encoding="utf-8")
    plot(states, document["curve"], Path(outputs[1]))


def chain(target: Path, folder: Path) -> AppFuture:
    """Connect the apps by their files, and return the last one's future."""

    def file(name: str) -> File:
        return File(str(folder / name))

    molecules = hamiltonians(BOND_LENGTHS, outputs=[file("hamiltonians.json")]).outputs[0]
    inputs = [molecules, File(str(target))]
    content = payload(PRECISION, inputs=inputs, outputs=[file("payload.json")]).outputs[0]
    result = run_payload(content, outputs=[file("result.json")]).outputs[0]
    outputs = [file("energies.json"), file("curve.png")]
    return energies(inputs=[molecules, result], outputs=outputs)


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
    with parsl.load(config):
        chain(arguments.target.resolve(), arguments.output.resolve()).result()


if __name__ == "__main__":
    main()
