"""Measure what each command costs besides its work, and how long a leased QPU idles for it.

    python benchmarks/start_up.py [--rounds N] [--chains N] [--before COMMIT] [--out FOLDER]

- *CPU seconds*: the interpreter alone, `qpu --help`, `qpu lease exec -- true`, `qpu run` under an
  adopted lease, a lease around a `qpu run`, and upstream's `task_runner` under an adopted lease.
  The commands run in turn, each once in a round, so that all meet the same load. The task takes
  50 ms on an emulated QPU.
- *chain*: five such tasks under Snakemake, one after the other, in a sandbox. The wall time of the
  `snakemake` command, and the share of its leases in which the QPU ran no task.
- *emulated*: the wall time until a command has run under a lease, and until a task has its result,
  on an emulated QPU (`emulated:fez`) and on the running emulator, in turn.

With `--before`, the same commands of another commit run beside them, from a worktree of that
commit. All modules are compiled to bytecode, as pip does for installed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

QPU = "ibm_fez"
EMULATOR = f"""
[qpus.{QPU}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
"""
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
REPOSITORY = Path(__file__).parents[1]
QPU_COMMAND = (sys.executable, "-m", "qrmi_workflows")
RUN = ("run", "payload", "-o", "result.json", "--quiet")
TASK_RUNNER = "from qrmi.tools.task_runner.main import run; run()"
OURS = {
    "qpu --help": (*QPU_COMMAND, "--help"),
    "qpu lease exec -- true": (*QPU_COMMAND, "lease", "exec", "--", "true"),
    "qpu run, adopted": (*QPU_COMMAND, *RUN),
    "qpu lease exec -- qpu run": (*QPU_COMMAND, "lease", "exec", "--", *QPU_COMMAND, *RUN),
}
OTHERS = {
    "python": (sys.executable, "-c", "pass"),
    "task_runner, adopted": (sys.executable, "-c", TASK_RUNNER, QPU, "payload", "raw.json"),
}
ADOPTED = ", adopted"
PLACES = {"plain": QPU, "emulated": "emulated:fez"}
SNAKEFILE = f"""
rule all:
    input: "5.json"
rule task:
    input: lambda wildcards: f"{{int(wildcards.i) - 1}}.json" if int(wildcards.i) > 1 else []
    output: "{{i}}.json"
    resources: qpu=1, qpu_name="{QPU}"
    shell: "qpu run payload -o {{output}} --qpu {QPU}"
"""
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--executor", "slurm-qpu", "--jobs", "1")


def cpu_seconds(argv: tuple[str, ...], environ: Mapping[str, str], folder: Path) -> float:
    """Run a command that must succeed; return the CPU time of its processes, in seconds."""
    with subprocess.Popen(argv, env=environ, cwd=folder, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed with {child.returncode}")
    return usage.ru_utime + usage.ru_stime


def measure(folder: Path, rounds: int, before: Path | None) -> dict[str, list[float]]:
    """Return the CPU seconds of each command, one for each round."""
    from qrmi_workflows import open_lease

    (folder / "payload").write_text(json.dumps(PAYLOAD), encoding="utf-8")
    commands = {name: (argv, REPOSITORY) for name, argv in (OTHERS | OURS).items()}
    if before is not None:
        commands |= {f"{name}, before": (argv, before) for name, argv in OURS.items()}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, (argv, tree) in commands.items():
            environ = {**os.environ, "PYTHONPATH": str(tree)}
            if ADOPTED in name:
                with open_lease() as lease:
                    seconds = cpu_seconds(argv, environ | lease.environment(), folder)
            else:
                seconds = cpu_seconds(argv, environ, folder)
            if number:  # the first round fills the caches of files and of bytecode
                found[name].append(seconds)
    return found


def measure_emulated(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the median wall times on both QPUs, and how much later the emulated one is."""
    found: dict[str, dict[str, list[float]]] = {
        name: {place: [] for place in PLACES} for name in ("start", "result")
    }
    for number in range(rounds + 1):
        for place, qpu in PLACES.items():
            leased = (*QPU_COMMAND, "lease", "exec", "--qpu", qpu, "--", "true")
            for name, argv in (("start", leased), ("result", (*QPU_COMMAND, *RUN, "--qpu", qpu))):
                (folder / "result.json").unlink(missing_ok=True)
                began = time.perf_counter()
                cpu_seconds(argv, os.environ, folder)
                if number:
                    found[name][place].append(time.perf_counter() - began)
    medians = {
        name: {place: round(median(seconds), 3) for place, seconds in places.items()}
        for name, places in found.items()
    }
    for each in medians.values():
        each["later by"] = round(each["emulated"] - each["plain"], 3)
    return {"rounds": rounds, "median wall seconds": medians}


def measure_chains(
    folder: Path, environ: Mapping[str, str], chains: int, before: Path | None
) -> dict[str, dict[str, float]]:
    """Run the chain several times; return the medians of its wall time and its leases' idleness."""
    trees = {"after": REPOSITORY} if before is None else {"before": before, "after": REPOSITORY}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    for number in range(chains + 1):
        for name, tree in trees.items():
            place = folder / f"{name}{number}"
            place.mkdir()
            measured = run_chain(place, tree, environ)
            if number:  # the first one fills the caches
                found[name].append(measured)
    return {
        name: {
            "wall seconds": round(median(seconds for seconds, _ in runs), 3),
            "idle share of the leases": round(median(idle for _, idle in runs), 3),
        }
        for name, runs in found.items()
    }


def run_chain(folder: Path, tree: Path, environ: Mapping[str, str]) -> tuple[float, float]:
    """Run the chain; return its wall time, and the share of its leases in which no task ran."""
    (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (folder / "payload").write_text(json.dumps(PAYLOAD), encoding="utf-8")
    records = folder / "leases.jsonl"
    places = os.pathsep.join(map(str, (tree, tree / "snakemake_ext")))
    variables = {**environ, "PYTHONPATH": places, "QPU_LEASE_RECORD": str(records)}
    start = time.perf_counter()
    done = subprocess.run(
        SNAKEMAKE, env=variables, cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(SNAKEMAKE)} failed:\n{done.stdout}\n{done.stderr}")
    leases = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    busy, held = (sum(each[key] for each in leases) for key in ("busy", "held"))
    return seconds, 1 - busy / held


@contextmanager
def sandbox(folder: Path) -> Iterator[dict[str, str]]:
    """Start a sandbox; yield its environment."""
    from qrmi_workflows.sandbox import Sandbox

    (folder / "emulator.toml").write_text(EMULATOR, encoding="utf-8")
    box = Sandbox(folder / "box")
    box.up(config=folder / "emulator.toml")
    try:
        yield {**os.environ, **box.environment()}
    finally:
        box.down()


@contextmanager
def emulated_site(folder: Path) -> Iterator[None]:
    """Start an emulator, and point the environment at it."""
    from qrmi_workflows.emulator import start_emulator

    (folder / "emulator.toml").write_text(EMULATOR, encoding="utf-8")
    with start_emulator(folder / "emulator", config=folder / "emulator.toml") as running:
        os.environ["QPU_CONFIG"] = str(running.config_path)
        os.environ["QPU_STATE"] = str(folder / "state")
        yield


@contextmanager
def worktree(commit: str | None, folder: Path) -> Iterator[Path | None]:
    """Check out a commit beside this one."""
    if commit is None:
        yield None
        return
    git = ("git", "-C", str(REPOSITORY), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    """Measure, and write the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chains", type=int, default=3)
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"before": options.before}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with worktree(options.before, folder / "before") as before:
            if options.rounds:
                with emulated_site(folder):
                    document |= summarise(measure(folder, options.rounds, before))
                    document["emulated"] = measure_emulated(folder, options.rounds)
            if options.chains:
                with sandbox(folder) as environ:
                    chains = measure_chains(folder / "box", environ, options.chains, before)
                    document["chain"] = {"runs": options.chains, **chains}
    text = json.dumps(document, indent=1)
    print(text)
    (options.out / "start_up.json").write_text(text, encoding="utf-8")


def summarise(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the medians, and what `qpu run` costs more than upstream's `task_runner`."""
    medians = {name: round(median(each), 4) for name, each in seconds.items()}
    more = medians["qpu run, adopted"] - medians["task_runner, adopted"]
    return {
        "rounds": len(seconds["python"]),
        "median CPU seconds": medians,
        "qpu run minus task_runner": round(more, 4),
    }


if __name__ == "__main__":
    main()
