"""A worker process: reads jobs from its standard input, writes their outcomes to its output.

Both are frames of an 8-byte length and a JSON document. Run by `workers.py`, never by hand:
`python -m qrmi_workflows.emulator.worker SIMULATOR MEMORY_BYTES`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from qrmi_workflows.emulator.simulators import SimulationError, load_simulator

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve jobs until the standard input closes."""
    simulator, memory_bytes = sys.argv[1], int(sys.argv[2])
    _die_with_the_emulator()
    os.nice(5)  # requests are answered first
    output = _take_standard_output()
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    run = _load(simulator)
    limit = _address_space() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        job = jobs.get()
        try:
            answer = run(job)
        except SimulationError as error:
            answer = {"error": str(error), "logs": error.logs}
        except MemoryError:
            answer = {"error": f"more than {memory_bytes / 2**30:g} GiB of memory", "logs": ""}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "logs": ""}
        body = json.dumps(answer).encode()
        output.write(len(body).to_bytes(8) + body)
        output.flush()


def _die_with_the_emulator() -> None:
    # The reader of the standard input may have to wait until a simulation lets other threads run.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(simulator: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    try:
        return load_simulator(simulator)
    except Exception as error:
        reason = f"the simulator {simulator} cannot be loaded: {error}"

    def refuse(job: dict[str, Any]) -> dict[str, Any]:
        del job
        raise SimulationError(reason)

    return refuse


def _take_standard_output() -> BinaryIO:
    """Keep the pipe for frames alone: what libraries print goes to the standard error."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _address_space() -> int:
    """Return what the libraries have reserved already, most of which is never used."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _read_jobs(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    while header := sys.stdin.buffer.read(8):
        jobs.put(json.loads(sys.stdin.buffer.read(int.from_bytes(header))))
    os._exit(0)  # the emulator is gone: end even in the middle of a simulation


if __name__ == "__main__":
    main()
