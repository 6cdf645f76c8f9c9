"""Measure what a stage of several jobs saves on Slurm, while the vendor's queue grows.

    python benchmarks/stages.py [--factor N] [--size PART] [--only MEASUREMENT] [--docs]

For figures to publish, run it with its defaults and `--docs` on a machine that does nothing else:
it takes about a quarter of an hour. With `--factor 20` the vendor's times are half as long. To see
whether everything works, run it with `--factor 60 --size 0.1`, which takes a few minutes. It writes
`stages.json` with all figures, `stages.md` with the tables and `stages.svg` with the picture to
`--out`, and a JSON file for each measurement as soon as that is done. `--docs` also writes
`docs/stages-measured.md` and its picture.

Everything runs in a sandbox, on real Slurm and an emulated QPU. Nodes declare more cores than the
machine has, so classical work is a sleep. The vendor's queue is 0, 10, 30 and 60 s, and is scaled
down to a tenth (`--factor`), as are the interactive TTL and the billed overhead of a task. Start-up
times of jobs and of Python are not scaled down, which puts stages at a disadvantage.

Keepers run on a gateway node, whose cores they share (`OverSubscribe=FORCE:8`, as docs/stages.md
describes). The core-seconds of compute nodes and of the gateway are given apart, and as a sum in
which each keeper counts as if it had a core of its own.

- *arms*: three jobs of two rounds, each of 1 s of classical work and a task of 0.2 s, on 1, 4 and
  16 cores. A session per task, a session per job, a stage whose jobs start at once, a stage whose
  jobs wait in Slurm until the QPU is ready.
- *jobs*: 20 jobs of one task, with a queue of 30 s that is not scaled down, unless the factor is
  above 10.
- *gang*: a quantum job, and 2, 4 or 8 classical jobs of one core that need its result.
- *fan_out*: 100 tasks of 50 ms: a session per job, and coalesced in a stage; neither is scaled.
- *split*: a job on 16 cores of 4 s of classical work and 4 s on the QPU, in two rounds; then the
  same as jobs that have only what they need, with leases of their own, and in a stage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages_page import write_page
from stages_report import PER_JOB, WAITING, check_goals, draw, render_tables
from stages_site import (
    FAN,
    PUB_SECONDS,
    QUEUES,
    TRUE,
    Job,
    Scale,
    Site,
    core_seconds,
    last_end,
    metered,
    payload,
    qpu_name,
    request,
    used,
)

CORES = (1, 4, 16)
WORKERS = (2, 4, 8)
ARMS = {
    "session per task": "task",
    PER_JOB: "job",
    "stage, jobs start at once": "started at once",
    WAITING: "waiting",
}
JOBS, ROUNDS, CLASSICAL = 3, 2, 1.0
ONE_TASK_JOBS = 20
AT_ONCE = 5
FAN_TASKS = 100
FAN_AT_ONCE = 3
FAN_MODES = ("dedicated", "batch")
SPLIT_ROUNDS, SPLIT_HALF, SPLIT_CORES = 2, 2.0, 16
GANG_SLOTS, SPLIT_SLOTS = 3, 6  # the first of their QPUs; the arms have the others
PROGRAMS = Path(__file__).parent / "stages_jobs.py"
DOCS = Path(__file__).parents[1] / "docs"


def measure_arms(site: Site) -> list[dict[str, Any]]:
    """Measure all arms, on 1, 4 and 16 cores at the same time."""
    cases = [(arm, queue, slot) for arm in ARMS for queue in QUEUES for slot in range(len(CORES))]
    with ThreadPoolExecutor(len(CORES)) as pool:
        return list(pool.map(lambda case: measure_arm(site, *case), cases))


def measure_arm(site: Site, arm: str, queue: int, slot: int) -> dict[str, Any]:
    """Run three jobs, and return what they used."""
    qpu, cores, kind = qpu_name(queue, slot), CORES[slot], ARMS[arm]
    folder, stage = site.work_folder(), f"arm-{time.monotonic_ns()}"
    loop = ["loop", "task" if kind == "task" else "job", qpu, ROUNDS, CLASSICAL, 1]
    with metered(site, qpu) as meter:
        before = time.time()
        stamps = [folder / f"first-{number}" for number in range(JOBS)]
        if kind in ("task", "job"):
            options, keeper, name = request(qpu), None, []
        else:
            keeper, name = site.open_stage(stage, qpu), [stage]
            options = site.stage_options(stage) if kind == "waiting" else []
        ids = [
            site.sbatch(
                folder, [*options, f"-n{cores}"], sys.executable, PROGRAMS, *loop, stamp, *name
            )
            for stamp in stamps
        ]
        if kind == "started at once":  # these do not count as the stage's when it is closed
            site.wait(ids)
        jobs, kept = finish(site, ids, keeper, stage)
    return {
        "arm": arm,
        "cores": cores,
        "queue": queue,
        **used(core_seconds(jobs, cores), kept),
        "first_result": round(min(float(stamp.read_text()) for stamp in stamps) - before, 2),
        "wall": round(last_end(jobs) - before, 2),
        **asdict(meter["use"]),
    }


def finish(
    site: Site, ids: list[str], keeper: str | None, stage: str
) -> tuple[list[Job], list[Job]]:
    """Close the stage, if any, and wait for all jobs; return them and the keeper's."""
    if keeper is None:
        return site.wait(ids), []
    site.call("qpu", "stage", "close", stage)
    return site.wait(ids), site.wait([keeper])


def measure_jobs(site: Site) -> list[dict[str, Any]]:
    """Run 20 jobs of one task, each with its own session, and in a stage."""
    rows = []
    count = site.scale.count(ONE_TASK_JOBS)
    for arm in (PER_JOB, WAITING):
        folder, stage = site.work_folder(), "jobs"
        (folder / "payload.json").write_text(json.dumps(payload(1)), encoding="utf-8")
        # As many at a time as this machine can start without slowing one another down much.
        array = f"--array=1-{count}%{AT_ONCE}"
        script = folder / "task.sh"
        script.write_text(
            "#!/bin/bash\nexec qpu run -q payload.json -o $SLURM_ARRAY_TASK_ID.result.json\n",
            encoding="utf-8",
        )
        with metered(site, TRUE) as meter:
            before, keeper, options, environ = time.time(), None, request(TRUE), ""
            if arm != PER_JOB:
                keeper = site.open_stage(stage, TRUE)
                options, environ = site.stage_options(stage), f",QPU_STAGE={stage}"
            array_id = site.call(
                "sbatch", "--parsable", *options, array, f"--export=ALL{environ}", script,
                folder=folder,
            ).strip()  # fmt: skip
            jobs = site.array(array_id, count)
            _, kept = finish(site, [], keeper, stage)
        rows.append(
            {
                "arm": arm,
                "jobs": len(jobs),
                "job_seconds": round(core_seconds(jobs, 1) / len(jobs), 2),
                **used(core_seconds(jobs, 1), kept),
                "wall": round(last_end(jobs) - before, 2),
                **asdict(meter["use"]),
            }
        )
    return rows


def measure_gangs(site: Site) -> list[dict[str, Any]]:
    """Measure the idle time of workers that need a task's result."""
    cases = [(kind, queue, slot) for kind in GANGS for queue in QUEUES for slot in range(3)]
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda case: measure_gang(site, *case), cases))


GANGS = ("together", "stage, after the task")


def measure_gang(site: Site, kind: str, queue: int, slot: int) -> dict[str, Any]:
    """Run one quantum job and its workers, and return how long a worker was idle."""
    qpu, workers = qpu_name(queue, GANG_SLOTS + slot), WORKERS[slot]
    folder, stage = site.work_folder(), f"gang-{time.monotonic_ns()}"
    (folder / "payload.json").write_text(json.dumps(payload(1)), encoding="utf-8")
    result = folder / "result.json"
    keeper, options, run = None, request(qpu), ["qpu", "run", "-q", "payload.json", "-o", result]
    if kind != "together":
        keeper = site.open_stage(stage, qpu)
        options = site.stage_options(stage)
        run = ["env", f"QPU_STAGE={stage}", *run]
    quantum = site.sbatch(folder, options, *run)
    after = [] if kind == "together" else [f"--dependency=afterok:{quantum}"]
    stamps = [folder / f"has-result-{number}" for number in range(workers)]
    work = "until [ -e result.json ]; do sleep 0.02; done; date +%s.%N > "
    ids = [site.sbatch(folder, after, "bash", "-c", work + stamp.name) for stamp in stamps]
    _, _ = finish(site, [quantum], keeper, stage)
    jobs = site.wait(ids)
    idle = [
        float(stamp.read_text()) - (job.started or 0.0)
        for stamp, job in zip(stamps, jobs, strict=True)
    ]
    return {
        "kind": kind,
        "workers": workers,
        "queue": queue,
        "idle_seconds": round(sum(idle) / workers, 2),
        "most_idle_seconds": round(max(idle), 2),
    }


def measure_fan_out(site: Site) -> dict[str, Any]:
    """Run 100 tasks of 50 ms, with a session for each job, and coalesced."""
    folder = site.work_folder()
    (folder / "payload.json").write_text(json.dumps(payload(1)), encoding="utf-8")
    script = folder / "task.sh"
    script.write_text(
        "#!/bin/bash\nexec qpu run -q payload.json -o $SLURM_ARRAY_TASK_ID.result.json\n",
        encoding="utf-8",
    )
    count = site.scale.count(FAN_TASKS)
    found: dict[str, Any] = {"tasks": count}
    for mode in FAN_MODES:
        argv = [
            *request(FAN), f"--array=1-{count}%{FAN_AT_ONCE}",
            f"--export=ALL,QPU_CONFIG={site.config_of_mode(mode)}", script,
        ]  # fmt: skip
        with metered(site, FAN) as own:
            array_id = site.call("sbatch", "--parsable", *argv, folder=folder).strip()
            site.array(array_id, count)
        found[f"{mode} session per job"] = asdict(own["use"])
        for result in folder.glob("*.result.json"):
            result.unlink()
    with metered(site, FAN) as coalesced:
        measure_coalesced(site, folder, "fan")
    times = measure_coalesced(site, folder, "compare")
    found["batch stage, coalesced"] = asdict(coalesced["use"])
    return found | {key: round(value, 3) for key, value in times.items()}


def measure_coalesced(site: Site, folder: Path, what: str) -> dict[str, float]:
    """Run the fan-out in a stage of its own, and return its times."""
    keeper, output = site.open_stage(what, FAN, "--mode", "batch"), folder / f"{what}.json"
    options = site.stage_options(what)
    argv = [sys.executable, PROGRAMS, "fan_out", what, site.scale.count(FAN_TASKS), output, what]
    finish(site, [site.sbatch(folder, options, *argv)], keeper, what)
    times: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))
    return times


def measure_split(site: Site) -> list[dict[str, Any]]:
    """Run a hybrid program as one job, as several, and as several in a stage."""
    cases = [(queue, slot) for queue in QUEUES for slot in range(len(SPLITS))]
    with ThreadPoolExecutor(len(SPLITS)) as pool:
        return list(pool.map(lambda case: measure_program(site, *case), cases))


SPLITS = ("monolith", "split", "split, in a stage")


def measure_program(site: Site, queue: int, slot: int) -> dict[str, Any]:
    """Run the program in one of three ways, and return its core-seconds."""
    kind, qpu = SPLITS[slot], qpu_name(queue, SPLIT_SLOTS + slot)
    pubs, folder = round(SPLIT_HALF / PUB_SECONDS), site.work_folder()
    stage = f"split-{time.monotonic_ns()}"
    (folder / "payload.json").write_text(json.dumps(payload(pubs)), encoding="utf-8")
    quantum: list[Job] = []
    kept: list[Job] = []
    with metered(site, qpu) as meter:
        before = time.time()
        if kind == "monolith":
            loop = ["loop", "job", qpu, SPLIT_ROUNDS, SPLIT_HALF, pubs, folder / "first"]
            options = [*request(qpu), f"-n{SPLIT_CORES}"]
            classical = site.wait([site.sbatch(folder, options, sys.executable, PROGRAMS, *loop)])
        else:
            keeper = site.open_stage(stage, qpu) if kind != "split" else None
            classical_ids, quantum_ids = submit_split(site, folder, qpu, stage if keeper else None)
            quantum, kept = finish(site, quantum_ids, keeper, stage)
            classical = site.wait(classical_ids)
    return {
        "kind": kind,
        "queue": queue,
        "classical_core_seconds": round(core_seconds(classical, SPLIT_CORES), 2),
        **used(core_seconds(classical, SPLIT_CORES) + core_seconds(quantum, 1), kept),
        "wall": round(last_end([*classical, *quantum]) - before, 2),
        **asdict(meter["use"]),
    }


def submit_split(
    site: Site, folder: Path, qpu: str, stage: str | None
) -> tuple[list[str], list[str]]:
    """Submit a chain of classical jobs and quantum jobs; return the ids of both."""
    classical: list[str] = []
    quantum: list[str] = []
    for number in range(SPLIT_ROUNDS):
        after = [f"--dependency=afterok:{quantum[-1]}"] if quantum else []
        classical.append(site.sbatch(folder, [*after, f"-n{SPLIT_CORES}"], "sleep", SPLIT_HALF))
        run: list[object] = ["qpu", "run", "-q", "payload.json", "-o", f"{number}.json"]
        if stage:
            options = site.stage_options(stage, "--after", classical[-1])
            run = ["env", f"QPU_STAGE={stage}", *run]
        else:
            options = [*request(qpu), f"--dependency=afterok:{classical[-1]}"]
        quantum.append(site.sbatch(folder, options, *run))
    return classical, quantum


MEASUREMENTS: dict[str, Callable[[Site], Any]] = {
    "arms": measure_arms,
    "jobs": measure_jobs,
    "gang": measure_gangs,
    "fan_out": measure_fan_out,
    "split": measure_split,
}


def measure(site: Site, names: list[str], out: Path) -> dict[str, Any]:
    """Measure the arms with the 20 jobs beside them, then the others side by side.

    Each has QPUs of its own, and mostly sleeps.
    """

    def run(name: str) -> Any:
        started = time.monotonic()
        found = MEASUREMENTS[name](site)
        (out / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
        print(f"{name}: measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
        return found

    found: dict[str, Any] = {}
    for together in (("arms", "jobs"), ("gang", "split", "fan_out")):
        chosen = [name for name in together if name in names]
        with ThreadPoolExecutor(len(together)) as pool:
            found |= dict(zip(chosen, pool.map(run, chosen), strict=True))
    return found


def main() -> None:
    """Measure, print JSON, and write it with a table and a picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS))
    parser.add_argument("--factor", type=float, default=10.0, help="default: 10")
    parser.add_argument(
        "--size", type=float, default=1.0, help="part of jobs and tasks; default: 1"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/stages-measured.md")
    options = parser.parse_args()
    if options.factor < 1 or not 0 < options.size <= 1:
        parser.error("--factor must be at least 1, and --size above 0 and at most 1")
    if options.docs and (options.only or options.size != 1):
        parser.error("--docs needs all measurements in full size: leave --only and --size out")
    options.out.mkdir(parents=True, exist_ok=True)
    scale = Scale(factor=options.factor, size=options.size)
    document: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 1),
        **asdict(scale),
        "true_factor": scale.true_factor,
    }
    with tempfile.TemporaryDirectory(prefix="qpu-stages-") as name:
        site = Site(Path(name), scale)
        try:
            site.up()
            document |= measure(site, options.only or list(MEASUREMENTS), options.out)
        finally:
            site.down()
    document["goals"] = check_goals(document)
    (options.out / "stages.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    tables = "\n\n".join(render_tables(document).values())
    (options.out / "stages.md").write_text(tables + "\n", encoding="utf-8")
    if "arms" in document:
        draw(document, options.out / "stages.svg")
    if options.docs:
        write_page(document, options.out / "stages.svg", DOCS)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
