"""The programs that the jobs of `benchmarks/stages.py` run, as a user would write them.

    python stages_jobs.py loop HOLD QPU ROUNDS SECONDS PUBS STAMP [STAGE]
    python stages_jobs.py fan_out compare|fan TASKS OUTPUT STAGE

Classical work is a sleep, because the sandbox's nodes have more cores than the machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from qrmi_workflows import open_lease


def loop(
    hold: str, qpu: str, rounds: str, seconds: str, pubs: str, stamp: str, stage: str = ""
) -> None:
    """Work classically, then run a task, several times.

    Args:
        hold: What has a lease of its own: each `task`, or the `job`.
        qpu: The QPU.
        rounds: How often.
        seconds: How long the classical work of a round takes.
        pubs: The number of PUBs of a task.
        stamp: File that gets the time of the first result.
        stage: The stage to join instead.
    """
    from stages_site import payload

    def acquire() -> Any:
        return open_lease(stage=stage) if stage else open_lease(qpu)

    with acquire() if hold == "job" else nullcontext() as held:
        for number in range(int(rounds)):
            time.sleep(float(seconds))
            with nullcontext(held) if held else acquire() as lease:
                lease.run(payload(int(pubs), 100 + number))
            if number == 0:
                Path(stamp).write_text(str(time.time()), encoding="utf-8")


def fan_out(what: str, tasks: str, output: str, stage: str) -> None:
    """Time coalesced tasks.

    Args:
        what: `compare` to time one task with as many PUBs before.
        tasks: The number of tasks.
        output: File that gets the times.
        stage: The stage to join.
    """
    from stages_site import payload

    count, times = int(tasks), {}
    with open_lease(stage=stage) as lease:
        if what == "compare":
            before = time.perf_counter()
            lease.run(payload(count))
            times["one_task_seconds"] = time.perf_counter() - before
        before = time.perf_counter()
        payloads = [payload(1) for _ in range(count)]
        results = list(lease.map(payloads, coalesce=True))
        times["fan_out_seconds"] = time.perf_counter() - before
    times["tasks_at_vendor"] = len({result.task_id for result in results})
    Path(output).write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"loop": loop, "fan_out": fan_out}
    programs[sys.argv[1]](*sys.argv[2:])
