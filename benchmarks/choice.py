"""Measure what choosing a QPU costs, and what it saves.

    python benchmarks/choice.py [--rounds N] [--steps N] [--queue SECONDS] [--parallel N]

- *choose*: the time of one choice among ten QPUs, with conditions on target and queue, in a process
  that makes many, as the engines do. The caches are warm; every five seconds, the vendors are asked
  again, which is the 95th percentile.
- *command*: the wall time of `qpu lease exec -- true` with a request that leaves a choice, minus
  that with the QPU's name; both run in turn.
- *steps*: the time until a number of steps (`qpu run`) have their results, some of them at a time,
  on two emulated QPUs of which one has a queue: with the name of the one, of the other, and chosen.
  A queue of 60 s is scaled down, and so is the time that a task takes.
- *fail-over*: the time of a step of as many tasks of two seconds, one after the other, on a QPU
  that goes offline after half of them, and of the same step on a QPU that stays. What it takes
  longer is the coordination: to notice, to acquire the fallback and to move.

It prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrmi_workflows.emulator import Emulator

QPU = (sys.executable, "-m", "qrmi_workflows")
PROGRAM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
PAYLOAD = {
    "program_id": "sampler",
    "parameters": {
        "version": 2,
        "support_qiskit": True,
        "options": {},
        "pubs": [[PROGRAM, [], 100]],
    },
}
OTHERS = 8
MODELS = ("fez", "torino", "kingston", "marrakesh")
CONDITIONS = {"min_qubits": 100, "where": "queue < 100000 and 'cz' in gates"}


def settings(queue: float, execution: float) -> str:
    """Return the emulator's settings: two QPUs to compare, and others to choose among."""
    tables = [
        f"[qpus.{name}]\n"
        'type = "ibm-quantum-compute-service"\n'
        f'model = "{MODELS[index % len(MODELS)]}"\n'
        'simulator = "null"\n'
        f"execution_seconds = {execution}\n"
        f"queue_seconds = {seconds}\n"
        for index, (name, seconds) in enumerate(
            [("two_free", 0.0), ("two_busy", queue)]
            + [(f"other_{number}", 0.0) for number in range(OTHERS)]
        )
    ]
    tables += [
        f'[qpus.{name}]\ntype = "ibm-quantum-compute-service"\nsimulator = "null"\n'
        "execution_seconds = 2.0\n"
        for name in ("first", "second", "third")
    ]
    return "".join(tables)


def time_choices(rounds: int) -> dict[str, float]:
    """Return how long one choice takes in a process, in milliseconds."""
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.choice.choose import choose
    from qrmi_workflows.config.constraints import parse_qpus

    constraints, asker = parse_qpus(None, **CONDITIONS), Asker(for_job=False)
    choose(constraints, asker)
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        choose(constraints, asker)
        taken.append((time.perf_counter() - begun) * 1000)
    return {
        "median_ms": round(median(taken), 2),
        "p95_ms": round(quantiles(taken, n=20)[-1], 2),
        "most_ms": round(max(taken), 2),
    }


def time_commands(folder: Path, rounds: int) -> dict[str, float]:
    """Return what a choice adds to the wall time of a command, in milliseconds."""
    named = ("--qpu", "other_0")
    chosen = ("--qpu", "other_*", "--min-qubits", "100", "--where", str(CONDITIONS["where"]))
    taken: dict[tuple[str, ...], list[float]] = {named: [], chosen: []}
    for index in range(rounds + 1):
        for request, times in taken.items():
            argv = (*QPU, "lease", "exec", *request, "--", "true")
            begun = time.perf_counter()
            subprocess.run(argv, check=True, cwd=folder, capture_output=True)
            if index:  # the first ones fill the caches
                times.append((time.perf_counter() - begun) * 1000)
    differences = [b - a for a, b in zip(taken[named], taken[chosen], strict=True)]
    return {
        "named_ms": round(median(taken[named]), 1),
        "chosen_ms": round(median(taken[chosen]), 1),
        "added_ms": round(median(differences), 1),
    }


def time_steps(folder: Path, request: str, steps: int, parallel: int) -> dict[str, Any]:
    """Return how long steps take until all have their results, and which QPUs they ran on."""
    work = folder / f"steps-{request.replace('*', 'any')}"
    work.mkdir()

    def run(number: int) -> None:
        output = str(work / f"{number}.json")
        argv = (*QPU, "run", "payload.json", "-q", "-o", output, "--qpu", request)
        subprocess.run(argv, check=True, cwd=folder, capture_output=True)

    begun = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(run, range(steps)))
    seconds = time.perf_counter() - begun
    ran_on = Counter(json.loads(path.read_text())["qpu"] for path in work.glob("*.json"))
    return {"seconds": round(seconds, 2), "qpus": dict(ran_on)}


def time_failover(emulator: Emulator, steps: int) -> dict[str, Any]:
    """Return how much longer a step takes whose QPU goes away in the middle."""
    from qrmi_workflows import open_lease

    def run(qpu: str, *, goes_away: bool) -> float:
        begun = time.perf_counter()
        with open_lease(qpu, fallback=["second"], step=f"fail-over {goes_away}") as lease:
            ran_on = []
            for number in range(steps):
                if goes_away and number == steps // 2:
                    emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "offline"})
                ran_on.append(lease.run(PAYLOAD).qpu)
        expected = {qpu: steps // 2, "second": steps - steps // 2} if goes_away else {qpu: steps}
        if Counter(ran_on) != expected:
            raise RuntimeError(f"the tasks ran on {ran_on}")
        return time.perf_counter() - begun

    stays, moves = run("third", goes_away=False), run("first", goes_away=True)
    return {
        "stays_seconds": round(stays, 2),
        "moves_seconds": round(moves, 2),
        "coordination": round((moves - stays) / moves, 4),
    }


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--queue", type=float, default=6.0)
    parser.add_argument("--execution", type=float, default=0.2)
    options = parser.parse_args()

    from qrmi_workflows.emulator import start_emulator

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "payload.json").write_text(json.dumps(PAYLOAD))
        (folder / "qpus.toml").write_text(settings(options.queue, options.execution))
        with start_emulator(folder / "emulator", config=folder / "qpus.toml") as emulator:
            os.environ |= {
                "QPU_CONFIG": str(emulator.config_path),
                "QPU_STATE": str(folder / "state"),
                "XDG_CACHE_HOME": str(folder / "cache"),
            }
            os.environ.pop("QPU_SITE", None)
            figures: dict[str, Any] = {
                "choose": time_choices(options.rounds * 10),
                "command": time_commands(folder, options.rounds),
            }
            for request in ("two_busy", "two_free", "two_*"):
                figures[request] = time_steps(folder, request, options.steps, options.parallel)
            figures["fail-over"] = time_failover(emulator, options.steps)
    chosen = figures["two_*"]["seconds"]
    figures["less_than_with_the_busy_name"] = round(1 - chosen / figures["two_busy"]["seconds"], 3)
    figures["of_the_time_with_the_free_name"] = round(chosen / figures["two_free"]["seconds"], 3)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
