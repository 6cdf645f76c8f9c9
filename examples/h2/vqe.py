"""Find the ground state of H2 with a variational loop in Parsl: many tasks, one lease.

The optimiser runs here. Every energy that it requests is a task in the block that holds the QPU.

    qpu target ibm_fez -o target.json
    python vqe.py target.json -o vqe.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import parsl
from hydrogen import exact, hamiltonian
from scipy.optimize import minimize
from transpile import estimator_payload, place, transpile

from parsl_ext import qpu_app, qpu_config


@qpu_app
def estimate(payload: dict[str, Any], *, lease: Any) -> dict[str, Any]:
    """Run one task. The app runs in the block, and its executor passes in the block's lease."""
    import os

    result = lease.run(payload)
    energies, _ = result.expectation_values()
    return {"energy": energies[0], "task": result.task_id, "job": os.environ.get("QRMI_JOB_ID")}


def vqe(bond_length: float, target: str, precision: float) -> dict[str, Any]:
    """Minimise the energy over the ansatz's angle, and return it with every iteration."""
    operator, circuit = hamiltonian(bond_length), transpile(target)
    observable = place(operator, circuit)
    iterations: list[dict[str, Any]] = []

    def energy(angles: Any) -> float:
        payload = estimator_payload(circuit, observable, angles.tolist(), precision)
        iterations.append({"angle": float(angles[0]), **estimate(payload).result()})
        return float(iterations[-1]["energy"])

    optimum = minimize(energy, x0=[0.0], method="COBYLA", options={"rhobeg": 0.3, "tol": 0.01})
    return {
        "bond_length": bond_length,
        "energy": float(optimum.fun),
        "exact": exact(operator),
        "iterations": iterations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the QPU's target, from `qpu target`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--qpu", default="ibm_fez")
    parser.add_argument("--bond-length", type=float, default=0.735, help="in ångström")
    parser.add_argument("--precision", type=float, default=1e-4, help="in hartree")
    parser.add_argument("--address", help="this machine's address as seen from the block")
    parser.add_argument("--local", action="store_true", help="run without Slurm")
    arguments = parser.parse_args()
    target = arguments.target.read_text(encoding="utf-8")
    config = qpu_config(
        arguments.qpu,
        local=arguments.local,
        address=arguments.address,
        run_dir=str(arguments.output.parent / "parsl"),
    )
    with parsl.load(config):
        answer = vqe(arguments.bond_length, target, arguments.precision)
    arguments.output.write_text(json.dumps(answer, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
