"""Compare this project's Snakemake executor with the stock Slurm executor.

    python benchmarks/snakemake.py [--rounds N] [--out FOLDER]

Both run in a sandbox, where each job runs one task of 50 ms on an emulated QPU. The workflows are a
chain of five jobs, a fan-out of eight jobs that exclude one another (GRES and licence), and a
fan-out of eight jobs that run two at a time (the GRES on each of two nodes). The stock executor
runs each with its default settings and with its first status check after 6 s and after 1 s; its
best time counts. The measurements are the wall time of the `snakemake` command and the number of
queries that slurmctld received meanwhile (`sdiag`), from the submitting process and from the jobs.

With the stock executor, the rules request the same from Slurm, and `qpu run` opens a lease in each
job. It needs one setting, `--slurm-status-command squeue`: without an accounting database, its
default waits forever.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from qrmi_workflows.sandbox import Sandbox

QUERIES = re.compile(r"^\s*(REQUEST_\w*INFO\w*)\s.*count:(\d+)", re.MULTILINE)
STATE_QUERIES = ("REQUEST_JOB_INFO", "REQUEST_JOB_INFO_SINGLE")
EMULATOR = """
[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
"""
PAYLOAD = {
    "program_id": "sampler",
    "parameters": {
        "version": 2,
        "support_qiskit": True,
        "options": {},
        "pubs": [
            ['OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;', [], 100]
        ],
    },
}
FAN_OUT = """
rule all:
    input: expand("{i}.json", i=range(8))
rule task:
    output: "{i}.json"
    resources: RESOURCES
    shell: "qpu run payload -o {output} --qpu ibm_fez"
"""
WORKFLOWS = {
    "chain of 5": """
rule all:
    input: "5.json"
rule task:
    input: lambda wildcards: f"{int(wildcards.i) - 1}.json" if int(wildcards.i) > 1 else []
    output: "{i}.json"
    resources: RESOURCES
    shell: "qpu run payload -o {output} --qpu ibm_fez"
""",
    "fan-out of 8": FAN_OUT,
    "fan-out of 8, two at a time": FAN_OUT,
}
SHARED = frozenset({"fan-out of 8, two at a time"})
SHARING_SITE = '[qpus.ibm_fez]\ngres = "qpu:ibm_fez"\n'
STOCK = 'gres="qpu:ibm_fez:1"'
LICENCE = ', slurm_extra="--licenses=qpu_ibm_fez:1"'
OURS = 'qpu=1, qpu_name="ibm_fez"'
STOCK_OPTIONS = ("--executor", "slurm", "--slurm-status-command", "squeue")
FIRST_CHECK = "--slurm-init-seconds-before-status-checks"
EXECUTORS = {
    "slurm, defaults": (STOCK, STOCK_OPTIONS),
    "slurm, first check after 6 s": (STOCK, (*STOCK_OPTIONS, FIRST_CHECK, "6")),
    "slurm, first check after 1 s": (STOCK, (*STOCK_OPTIONS, FIRST_CHECK, "1")),
    "slurm-qpu, defaults": (OURS, ("--executor", "slurm-qpu")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workflow under one executor.

    Attributes:
        workflow: Its name.
        executor: The executor and its settings.
        seconds: The wall time of the `snakemake` command.
        job_seconds: The jobs' total run time according to Slurm, which counts whole seconds.
        state_queries: How often slurmctld was queried for jobs' states.
        queries: How often it was queried for anything.
    """

    workflow: str
    executor: str
    seconds: float
    job_seconds: float
    state_queries: int
    queries: int


def measure(workflow: str, executor: str, environ: Mapping[str, str]) -> Run:
    """Run a workflow once, in a new folder."""
    resources, options = EXECUTORS[executor]
    shared = workflow in SHARED
    if resources == STOCK and not shared:
        resources += LICENCE
    with tempfile.TemporaryDirectory() as folder:
        snakefile = WORKFLOWS[workflow].replace("RESOURCES", resources)
        Path(folder, "Snakefile").write_text(snakefile, encoding="utf-8")
        Path(folder, "payload").write_text(json.dumps(PAYLOAD), encoding="utf-8")
        if shared:
            Path(folder, "site.toml").write_text(SHARING_SITE, encoding="utf-8")
            environ = {**environ, "QPU_SITE": str(Path(folder, "site.toml"))}
        started = datetime.now().replace(microsecond=0)  # like Slurm's, local and whole seconds
        call(["sdiag", "--reset"], environ)
        start = time.perf_counter()
        command = [sys.executable, "-m", "snakemake", *options, "--jobs", "8"]
        call(command, environ, folder)
        seconds = time.perf_counter() - start
    counts = {name: int(n) for name, n in QUERIES.findall(call(["sdiag"], environ))}
    return Run(
        workflow=workflow,
        executor=executor,
        seconds=seconds,
        job_seconds=job_seconds(environ, started),
        state_queries=sum(counts.get(name, 0) for name in STATE_QUERIES),
        queries=sum(counts.values()),
    )


def job_seconds(environ: Mapping[str, str], since: datetime) -> float:
    """Return the total run time of the jobs that have started since a given time."""
    output = call(["squeue", "--noheader", "--states=all", "--Format=StartTime,EndTime"], environ)
    times = [
        [datetime.fromisoformat(word) for word in line.split()] for line in output.splitlines()
    ]
    return sum((end - start).total_seconds() for start, end in times if start >= since)


def call(argv: list[str], environ: Mapping[str, str], folder: str | None = None) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        argv, env=environ, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def summarise(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return each workflow's speed-up over the stock executor's default and best settings."""
    times: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        times.setdefault(run.workflow, {}).setdefault(run.executor, []).append(run.seconds)
    ratios = {}
    for workflow, by_executor in times.items():
        medians = {executor: median(seconds) for executor, seconds in by_executor.items()}
        ours = medians.pop("slurm-qpu, defaults")
        ratios[workflow] = {
            "against defaults": medians["slurm, defaults"] / ours,
            "against its best": min(medians.values()) / ours,
        }
    return ratios


def show(runs: Iterable[Run], ratios: Mapping[str, Mapping[str, float]]) -> None:
    """Print every run and the ratios."""
    table = Table(
        "workflow", "executor", "wall time", "in jobs (whole s)", "job queries", "all queries"
    )
    for run in runs:
        table.add_row(
            run.workflow,
            run.executor,
            f"{run.seconds:.1f} s",
            f"{run.job_seconds:.0f} s",
            str(run.state_queries),
            str(run.queries),
        )
    console = Console(width=100)
    console.print(table)
    for workflow, by_kind in ratios.items():
        speed_ups = ", ".join(f"{ratio:.1f} {kind}" for kind, ratio in by_kind.items())
        console.print(f"Speed-up of slurm-qpu for {workflow}: {speed_ups}")


def draw(runs: Iterable[Run], path: Path) -> None:
    """Plot the wall times."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    runs = list(runs)
    figure, axes = plt.subplots(1, len(WORKFLOWS), figsize=(14, 3), layout="constrained")
    for axis, workflow in zip(axes, WORKFLOWS, strict=True):
        bars = {run.executor: run.seconds for run in runs if run.workflow == workflow}
        axis.bar_label(axis.barh(list(bars), list(bars.values())), fmt="%.1f s", padding=3)
        axis.set(title=workflow, xlabel="wall time [s]", xlim=(0, 1.15 * max(bars.values())))
        axis.invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print the results, and write them as JSON and as a plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--executor", action="append", choices=list(EXECUTORS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "emulator.toml")
        settings.write_text(EMULATOR, encoding="utf-8")
        sandbox = Sandbox(Path(folder, "sandbox"))
        sandbox.up(config=settings)
        try:
            environ = os.environ | sandbox.environment()
            runs = [
                measure(workflow, executor, environ)
                for _ in range(options.rounds)
                for executor in options.executor or EXECUTORS
                for workflow in WORKFLOWS
            ]
        finally:
            sandbox.down()
    ratios = {} if options.executor else summarise(runs)
    show(runs, ratios)
    document = {"runs": [asdict(run) for run in runs], "ratios": ratios}
    (options.out / "snakemake.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    draw(runs, options.out / "snakemake.png")


if __name__ == "__main__":
    main()
