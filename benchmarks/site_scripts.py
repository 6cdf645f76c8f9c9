"""Measure the site's Prolog and Epilog, and `qpu reap --all`: prints JSON.

The scripts that `qpu site install` writes are run as slurmd runs them, for a job of a real Slurm
and against the emulator, beside a script that runs `true` alone, and an Epilog of a job without a
QPU. The vendor's own answers are subtracted: the lease record has the one as `acquire`, and the
other is that to a release by a process that has done the same before. The targets are 0.5 s at the
median for each script, and 2 s for the reaper over 1,000 open leases.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.sandbox import Sandbox

RUNS = 20
RECORDS = 1000
STATES = 5000
STATES_WITH_LEASES = 20
EMULATOR = """
[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.FRESNEL]
type = "pasqal-cloud"
simulator = "null"
"""
OPTIONS = ("--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")


def main() -> None:
    """Measure, and print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # users read site.toml
        settings = Path(folder) / "emulator.toml"
        settings.write_text(EMULATOR)
        box = Sandbox(Path(folder) / "box")
        box.up(config=settings, site_scripts=True)
        try:
            print(json.dumps({**measure_scripts(box), "reaper": measure_reaper(box)}, indent=1))
        finally:
            box.down(grace=0)


def measure_scripts(box: Sandbox) -> dict[str, object]:
    """Run the Prolog and the Epilog of a job alternately, and `true` beside them."""
    environ = os.environ | box.environment()
    argv = ("sbatch", "--parsable", "--hold", *OPTIONS, "--wrap=true")
    job = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    variables = {
        "SLURM_JOB_ID": job.stdout.strip(),
        "SLURM_JOB_UID": str(os.getuid()),
        "SLURM_JOB_GID": str(os.getgid()),
        "SLURM_JOB_USER": "bench",
        "SLURM_CLUSTER_NAME": "sandbox",
        "SLURMD_NODENAME": "n1",
        "SLURM_NODELIST": "n1",
        "SLURM_CONF": environ["SLURM_CONF"],
    }
    site = box.directory / "site"
    (box.directory / "etc" / "epilog").unlink()  # the sandbox's own, which runs before the site's
    only_true = site / "only_true"
    only_true.write_text("#!/bin/sh\ntimeout --signal=KILL 75 true </dev/null\nexit 0\n")
    only_true.chmod(0o755)
    names = ("prolog", "epilog", "only_true", "epilog_without_qpu")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in seconds}
    for _ in range(RUNS):
        for name, taken in seconds.items():
            started, used = time.perf_counter(), _processor_seconds()
            script = site / name.removesuffix("_without_qpu")  # after the Epilog, nothing is left
            subprocess.run([script], env=variables, check=True, capture_output=True)
            taken.append(time.perf_counter() - started)
            processor[name].append(_processor_seconds() - used)
    (records,) = (site / "state" / "leases").glob("*.jsonl")
    acquired = [json.loads(line)["acquire"] for line in records.read_text().splitlines()]
    if len(acquired) != RUNS:
        raise RuntimeError(f"{len(acquired)} leases instead of {RUNS}")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    acquire, release = statistics.median(acquired), measure_release(box)
    return {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "processor_seconds": {
            name: round(statistics.median(used), 3) for name, used in processor.items()
        },
        "load": os.getloadavg()[0],
        "acquire_seconds": round(acquire, 3),
        "release_seconds": round(release, 3),
        "beyond_the_vendor": {
            "prolog": round(medians["prolog"] - acquire, 3),
            "epilog": round(medians["epilog"] - release, 3),
        },
        "ratio_to_true": {
            name: round(medians[name] / medians["only_true"], 1) for name in ("prolog", "epilog")
        },
    }


def measure_release(box: Sandbox) -> float:
    """Return how long the vendor takes to release the QPU."""
    defined = load_qpus(box.directory / "emulator" / "qrmi_config.json")["ibm_fez"]
    taken = []
    for _ in range(RUNS):
        resource = QRMIResource(defined.name, defined.type, defined.environment)
        token = resource.acquire()
        started = time.perf_counter()
        resource.release(token)
        taken.append(time.perf_counter() - started)
        resource.close()
    return statistics.median(taken)


def _processor_seconds() -> float:
    """Return the processor time of the ended children: on a busy machine, the others are longer."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_reaper(box: Sandbox) -> dict[str, float]:
    """Reap a site with many leases: of a live job, or of jobs that have ended."""
    environ = os.environ | box.environment()
    job = subprocess.run(
        ("sbatch", "--parsable", "--wrap=sleep 600"),
        env=environ, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    while "RUNNING" not in _squeue(job, environ):
        time.sleep(0.1)
    taken = {"without_leases": _reap(environ)}
    root = box.directory / "site" / "state" / "leases" / "open"
    dead = [str(5_000_000 + number) for number in range(RECORDS)]
    kinds = {
        "live": ([job] * RECORDS, "ibm_fez", "ibm-quantum-compute-service"),
        # Its release asks no vendor.
        "orphans_without_session": (dead, "FRESNEL", "pasqal-cloud"),
        "orphans_of_undefined_qpu": (dead, "gone", "pasqal-cloud"),
        "orphans_with_session": (dead, "ibm_fez", "ibm-quantum-compute-service"),
    }
    for name, (jobs, qpu, type_) in kinds.items():
        _write_leases(root, jobs, qpu, type_, box)
        taken[name] = _reap(environ, runs=1)
        for path in root.glob("*.json"):
            path.unlink()
    with tempfile.TemporaryDirectory(prefix="states-") as states:
        taken["states_of_users"] = _measure_states(Path(states), dead, box, environ)
    return {"records": RECORDS, **{name: round(value, 3) for name, value in taken.items()}}


def _measure_states(states: Path, dead: list[str], box: Sandbox, environ: dict[str, str]) -> float:
    """Reap the adopted leases of ended jobs in a few of many state folders, as root for a user."""
    states.chmod(0o755)
    owner = "nobody" if os.geteuid() == 0 else None
    for number in range(STATES):
        folder = states / str(number) / "leases" / "open"
        folder.mkdir(parents=True)
        if number < STATES_WITH_LEASES:
            share = dead[number::STATES_WITH_LEASES]
            _write_leases(folder, share, "ibm_fez", "ibm-quantum-compute-service", box, True)
        for path in (states / str(number), *(states / str(number)).rglob("*")):
            if owner is not None:
                shutil.chown(path, owner)
    return _reap(environ, states=f"{states}/*", runs=1)


def _write_leases(
    folder: Path, jobs: list[str], qpu: str, type_: str, box: Sandbox, adopted: bool = False
) -> None:
    for number, job in enumerate(jobs):
        owner = {"host": "n9", "boot": "b", "pid": 1, "started": 1, "job": job}
        lease = {
            "path": None, "lease": str(number), "qpu": qpu, "type": type_, "step": "",
            "owner": owner | {"cluster": "sandbox"}, "acquired": time.time(), "acquire": 0.1,
            "config": str(box.directory / "emulator" / "qrmi_config.json"), "token": "t",
            "adopted": adopted, "user": "root",
        }  # fmt: skip
        (folder / f"{number}.json").write_text(json.dumps(lease))


def _squeue(job: str, environ: dict[str, str]) -> str:
    argv = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout


def _reap(environ: dict[str, str], states: str = "/nowhere/*", runs: int = 3) -> float:
    argv = [sys.executable, "-m", "qrmi_workflows", "reap", "--all", f"--states={states}"]
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(argv, env=environ, check=False, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
