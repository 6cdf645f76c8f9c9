"""A sandbox whose jobs are timed, and the QPUs of `benchmarks/stages.py`.

A job's core-seconds are its allocated cores times its elapsed time, as Slurm accounts them. Slurm
itself counts whole seconds; here, slurmctld's log is read as it is written, within 20 ms.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qrmi_workflows.emulator import Control
from qrmi_workflows.sandbox import Sandbox

QUEUES = (0, 10, 30, 60)
"""The vendor's queue in seconds, before it is scaled down."""
TRUE_QUEUE = 30
COMPUTE_NODES = 15
KEEPERS_PER_CORE = 8
SLOTS = 9
"""How many QPUs there are for each queue, for measurements at the same time."""
PUB_SECONDS = 0.2
TRUE, FAN = "true", "fan"

_STARTED = re.compile(r"(?:Started|Allocate) JobId=(?:\S+\()?(\d+)")
_ENDED = re.compile(r"_job_complete: JobId=(?:\S+\()?(\d+)\)? done")
_FAILED = re.compile(r"_job_complete: JobId=(?:\S+\()?(\d+)\)? (WEXITSTATUS [1-9].*|WTERMSIG.*)")
_OF_ARRAY = re.compile(r"JobId=(\d+)_\d+\((\d+)\)")
_PROGRAM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
_NAMES = itertools.count(1)


def qpu_name(queue: int, slot: int) -> str:
    """Return the name of a QPU with a vendor's queue of so many seconds, scaled down."""
    return f"q{queue}_{slot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much smaller the measurements are than what they stand for.

    Attributes:
        factor: Seconds of the vendor's queue, of its interactive TTL and of its overhead for one
            second here.
        size: The part of the jobs and tasks of the larger measurements that are run.
    """

    factor: float = 10.0
    size: float = 1.0

    @property
    def true_factor(self) -> float:
        """The factor of the measurement that is not scaled down, unless `factor` is above 10."""
        return max(1.0, self.factor / 10)

    def count(self, whole: int) -> int:
        """Return how many jobs or tasks stand for so many."""
        return max(2, round(whole * self.size))


def emulator_settings(scale: Scale) -> str:
    """Return the emulator's settings: all tasks take 0.2 s for each PUB, or 50 ms on `fan`."""
    qpus = [
        _qpu(qpu_name(queue, slot), PUB_SECONDS, queue, scale.factor)
        for queue in QUEUES
        for slot in range(SLOTS)
    ]
    true = _qpu(TRUE, PUB_SECONDS, TRUE_QUEUE, scale.true_factor)
    return "\n".join([*qpus, true, _qpu(FAN, 0.05, 0, 1.0)])


def _qpu(name: str, pub: float, queue: float, factor: float) -> str:
    return (
        f'[qpus.{name}]\ntype = "ibm-quantum-compute-service"\nsimulator = "null"\n'
        f"execution_seconds = 0\npub_seconds = {pub}\nqueue_seconds = {queue / factor}\n"
        f"interactive_ttl_seconds = {60 / factor}\noverhead_seconds = {2 / factor}\n"
    )


def with_gateway(slurm_conf: str) -> str:
    """Return a sandbox's slurm.conf with a last node on which keepers share cores."""
    gateway = f"n{COMPUTE_NODES + 1}"
    *others, main = slurm_conf.rstrip().splitlines()
    return "\n".join(
        [
            *others,
            main.replace("Nodes=ALL", f"Nodes=n[1-{COMPUTE_NODES}]"),
            f"PartitionName=gateway Nodes={gateway} OverSubscribe=FORCE:{KEEPERS_PER_CORE}",
            "",
        ]
    )


def payload(pubs: int, shots: int = 100) -> dict[str, Any]:
    """Return a payload with so many PUBs."""
    parameters = {
        "pubs": [[_PROGRAM, None, shots]] * pubs,
        "version": 2,
        "support_qiskit": True,
        "options": {},
    }
    return {"program_id": "sampler", "parameters": parameters}


@dataclass(slots=True, kw_only=True)
class Job:
    """A job, as slurmctld's log tells of it; times in seconds since the epoch."""

    started: float | None = None
    ended: float | None = None
    failure: str = ""

    @property
    def elapsed(self) -> float:
        """How long it had its cores."""
        if self.started is None or self.ended is None:
            return 0.0
        return self.ended - self.started


def request(qpu: str) -> list[str]:
    """Return the options with which a job requests a QPU for itself."""
    licence = [] if qpu == TRUE else [f"--licenses=qpu_{qpu}:1"]
    return [f"--gres=qpu:{qpu}:1", *licence]


def core_seconds(jobs: Iterable[Job], cores: int) -> float:
    """Return the jobs' allocated cores times their elapsed times."""
    return cores * sum(job.elapsed for job in jobs)


def used(compute: float, keepers: Iterable[Job]) -> dict[str, float]:
    """Return core-seconds of the compute nodes and of the gateway node, and their sum.

    A keeper counts as if it had a core of its own, which it shares with up to seven others.
    """
    gateway = core_seconds(keepers, 1)
    return {
        "core_seconds": round(compute + gateway, 2),
        "compute_core_seconds": round(compute, 2),
        "gateway_core_seconds": round(gateway, 2),
    }


def last_end(jobs: Iterable[Job]) -> float:
    """Return when the last job ended."""
    return max(job.ended or 0.0 for job in jobs)


class Site:
    """A sandbox in a folder, whose slurmctld's log is followed."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        (folder / "emulator.toml").write_text(emulator_settings(scale), encoding="utf-8")
        self._sandbox = Sandbox(folder / "sandbox")
        self._jobs: dict[str, Job] = {}
        self._arrays: dict[str, set[str]] = {}
        self._stop = threading.Event()

    def up(self) -> None:
        """Start the sandbox."""
        self._sandbox.up(nodes=COMPUTE_NODES + 1, config=self.folder / "emulator.toml")
        self.environ = {**os.environ, **self._sandbox.environment()}
        conf = self._sandbox.directory / "etc" / "slurm.conf"
        conf.write_text(with_gateway(conf.read_text(encoding="utf-8")), encoding="utf-8")
        self.call("scontrol", "reconfigure")
        # Nothing but one GRES for each node: the vendor, not Slurm, excludes the sessions there.
        site = self._sandbox.directory / "site.toml"
        own = self.folder / "site.toml"
        policy = site.read_text(encoding="utf-8")
        policy = policy.replace(f'[qpus."{TRUE}"]', f'[qpus."{TRUE}"]\nlicence = ""')
        # Jobs with a lease of their own are submitted without the policy: see `stages.request`.
        policy = policy.replace("[defaults]", '[defaults]\npartition = "gateway"')
        own.write_text(policy, encoding="utf-8")
        self.environ["QPU_SITE"] = str(own)
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def down(self) -> None:
        """Stop the sandbox."""
        self._stop.set()
        self._sandbox.down(grace=2)

    def work_folder(self) -> Path:
        """Return a new empty folder."""
        path = self.folder / f"work-{next(_NAMES)}"
        path.mkdir()
        return path

    def call(self, *argv: object, folder: Path | None = None) -> str:
        """Run a command that must succeed, and return its output."""
        words = [str(word) for word in argv]
        done = subprocess.run(
            words, env=self.environ, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def sbatch(self, folder: Path, options: Iterable[object], *command: object) -> str:
        """Submit a job that runs one command, and return its id."""
        words = " ".join(f"'{word}'" for word in command)
        script = folder / f"job-{next(_NAMES)}.sh"
        script.write_text(f"#!/bin/bash\nexec {words}\n", encoding="utf-8")
        output = self.call("sbatch", "--parsable", *options, script, folder=folder)
        return output.strip().partition(";")[0]

    def open_stage(self, name: str, qpu: str, *options: str) -> str:
        """Open a stage, and return the id of the keeper's job."""
        argv = ["qpu", "stage", "open", name, "--qpu", qpu, *options, "--json"]
        return str(json.loads(self.call(*argv))["keeper_job"])

    def stage_options(self, name: str, *options: str) -> list[str]:
        """Return the options that make a job part of a stage."""
        return self.call("qpu", "stage", "options", name, *options).split()

    def wait(self, ids: Sequence[str], seconds: float = 300) -> list[Job]:
        """Wait until jobs have ended, and return them; the tasks of an array are jobs.

        Raises:
            RuntimeError: A job has failed, or takes too long.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            jobs = [self._jobs.get(each) for each in ids]
            for each, job in zip(ids, jobs, strict=True):
                if job and job.failure:
                    raise RuntimeError(f"{job.failure}:\n{self._output(each)}")
            if all(each and each.ended for each in jobs):
                return [each for each in jobs if each]
            time.sleep(0.02)
        raise RuntimeError(f"jobs {ids} have not ended after {seconds} s; see {self.folder}")

    def _output(self, job: str) -> str:
        """Return what a job has written, and the keepers' logs."""
        name = job.partition("(")[0]  # slurmctld's `1_2(3)` is task 2 of array 1
        files = [*self.folder.glob(f"work-*/slurm-{name}.out"), *self.folder.rglob("keeper.log")]
        return "\n".join(f"{file}:\n{file.read_text(encoding='utf-8')}" for file in files)

    def array(self, array: str, size: int, seconds: float = 600) -> list[Job]:
        """Wait until all jobs of an array have ended, and return them."""
        deadline = time.monotonic() + seconds
        while len(self._arrays.get(array, ())) < size and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.wait(sorted(self._arrays.get(array, ())), seconds)

    def config_of_mode(self, mode: str) -> Path:
        """Write a qrmi_config.json whose QPUs open sessions of a mode, and return its path."""
        document = json.loads(Path(self.environ["QPU_CONFIG"]).read_text(encoding="utf-8"))
        for resource in document["resources"]:
            resource["environment"]["QRMI_IBM_QCS_SESSION_MODE"] = mode
        path = self.folder / f"{mode}.json"
        path.touch(mode=0o600)  # it holds the emulator's credentials
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def billing(self, qpu: str) -> dict[str, Any]:
        """Return what the vendor has billed for a QPU."""
        bill: dict[str, Any] = Control(self._sandbox.directory / "emulator").billing()
        return dict(bill["qpus"][qpu])

    def held_seconds(self, qpu: str, since: float) -> float:
        """Return how long a QPU's leases were held that were released since then."""
        total = 0.0
        for file in Path(self.environ["QPU_STATE"], "leases").glob("*.jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                released = datetime.fromisoformat(record["released"]).timestamp()
                if record["qpu"] == qpu and released >= since and not record["adopted"]:
                    total += record["held"]
        return total

    def _follow(self) -> None:
        log = self._sandbox.directory / "log" / "slurmctld.log"
        with log.open(encoding="utf-8", errors="replace") as opened:
            rest = ""
            while not self._stop.is_set():
                rest += opened.read()
                *lines, rest = rest.split("\n")
                now = time.time()
                for line in lines:
                    self._read(line, now)
                time.sleep(0.02)

    def _read(self, line: str, now: float) -> None:
        if found := _OF_ARRAY.search(line):
            self._arrays.setdefault(found[1], set()).add(found[2])
        if found := _STARTED.search(line):
            self._jobs[found[1]] = Job(started=now)
        elif found := _FAILED.search(line):
            self._jobs.setdefault(found[1], Job()).failure = line
        elif found := _ENDED.search(line):
            self._jobs.setdefault(found[1], Job()).ended = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What was used of a QPU during a measurement, and what the vendor billed."""

    sessions: int
    tasks: int
    billed_seconds: float
    qpu_seconds: float
    held_seconds: float


@contextmanager
def metered(site: Site, qpu: str) -> Iterator[dict[str, Use]]:
    """Meter a QPU: the result is under the key "use" once the block has ended."""
    before, since = _totals(site.billing(qpu)), time.time()
    meter: dict[str, Use] = {}
    yield meter
    after = _totals(site.billing(qpu))
    meter["use"] = Use(
        **{name: round(after[name] - before[name], 3) for name in before},  # type: ignore[arg-type]
        held_seconds=round(site.held_seconds(qpu, since), 3),
    )


def _totals(bill: Mapping[str, Any]) -> dict[str, float]:
    return {
        "sessions": len(bill["sessions"]),
        "tasks": len(bill["tasks"]),
        "billed_seconds": bill["billed_seconds"],
        "qpu_seconds": bill["qpu_seconds"],
    }
