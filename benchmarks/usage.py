"""Measure `qpu usage` over many lease records, beside a plain parser of the same lines.

    python benchmarks/usage.py [--records N] [--rounds N]

The records are those of many users on several hosts over a year, with a site policy, so that every
anomaly is looked for. The ratio is that of `qpu usage --all --by user,qpu` to a Python process that
only calls `json.loads` for each line; the two run in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.state.process import Owner
from qrmi_workflows.state.users import user_name

PLAIN = "import json, sys\nfor name in sys.argv[1:]:\n for line in open(name): json.loads(line)"
QPUS = {"ibm_fez": "ibm-quantum-compute-service", "FRESNEL": "pasqal-cloud"}
START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = '[site]\nrecords = "{records}"\n[qpus.ibm_fez]\nexclusive = true\n[qpus.FRESNEL]\n'


def record(number: int, seconds: float, chance: random.Random) -> LeaseRecord:
    """Return a record of a lease that was acquired so many seconds after the start."""
    held = round(chance.uniform(1, 600), 3)
    busy = round(held * chance.random(), 3)
    qpu = chance.choice(sorted(QPUS))
    acquired = START + timedelta(seconds=seconds)
    return LeaseRecord(
        lease=f"{number:032x}",
        qpu=qpu,
        type=QPUS[qpu],
        step=f"rule sample, wildcards name={number}",
        owner=Owner(host="n1", boot="0" * 36, pid=number, started=1, job=str(number)),
        acquired=acquired.isoformat(),
        released=(acquired + timedelta(seconds=held)).isoformat(),
        queue_wait=float(chance.randrange(1000)),
        acquire=0.5,
        held=held,
        busy=busy,
        idle=round(held - busy, 3),
        tasks=2,
        task_ids=[f"{chance.getrandbits(128):032x}" for _ in range(2)],
        billed=busy,
        billing_rule="QPU seconds",
        user=user_name(),
        account=f"account{number % 20}",
        acquisitions=[f"{chance.getrandbits(64):016x}"],
        shots=2000,
    )


def write(folder: Path, count: int) -> list[Path]:
    """Write records, in files by month as leases do; return the files."""
    chance, files = random.Random(1), {}  # noqa: S311 - no secrets
    for number in range(count):
        each = record(number, number * 31_000_000 / count, chance)
        files.setdefault(each.released[:7], []).append(each.to_json() + "\n")
    folder.mkdir(parents=True)
    for month, lines in files.items():
        (folder / f"{month}-n1.jsonl").write_text("".join(lines), encoding="utf-8")
    return sorted(folder.glob("*.jsonl"))


def measure(argv: list[str], environ: dict[str, str]) -> float:
    """Return how many seconds a command takes."""
    start = time.perf_counter()
    subprocess.run(argv, env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        records, policy = Path(name) / "records", Path(name) / "site.toml"
        files = write(records / user_name(), args.records)
        policy.write_text(POLICY.format(records=records), encoding="utf-8")
        environ = {**os.environ, "QPU_SITE": str(policy), "QPU_STATE": f"{name}/state"}
        usage = [sys.executable, "-m", "qrmi_workflows", "usage", "--all", "--by", "user,qpu"]
        plain = [sys.executable, "-c", PLAIN, *map(str, files)]
        runs = [(measure(plain, environ), measure(usage, environ)) for _ in range(args.rounds)]
        seconds = [median(each) for each in zip(*runs, strict=True)]
        print(
            json.dumps(
                {
                    "records": args.records,
                    "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
                    "json.loads_seconds": round(seconds[0], 2),
                    "usage_seconds": round(seconds[1], 2),
                    "ratio": round(median(ours / theirs for theirs, ours in runs), 2),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
