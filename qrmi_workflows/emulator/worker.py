"""A worker process: reads simulations from standard input, writes outcomes to standard output.

Each message is an 8-byte length followed by a JSON document. `workers.py` runs it as
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
    """Simulate until standard input closes."""
    simulator, memory_bytes = sys.argv[1], int(sys.argv[2])
    _die_with_parent()
    os.nice(5)  # the server's requests take precedence
    output = _reserve_stdout()
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_stdin, args=(inbox,), daemon=True).start()
    run = _load(simulator)
    limit = _address_space_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        work = inbox.get()
        try:
            answer = run(work)
        except SimulationError as error:
            answer = {"error": str(error), "logs": error.logs}
        except MemoryError:
            limit_gib = memory_bytes / 2**30
            answer = {"error": f"the simulation exceeds {limit_gib:g} GiB of memory", "logs": ""}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "logs": ""}
        body = json.dumps(answer).encode()
        output.write(len(body).to_bytes(8) + body)
        output.flush()


def _die_with_parent() -> None:
    # Noticing that standard input has closed is not enough: the reader thread cannot run while a
    # simulation holds the GIL.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(simulator: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load a simulator; if that fails, return a function that fails every task with the reason."""
    try:
        return load_simulator(simulator)
    except Exception as error:
        reason = f"the simulator {simulator} cannot be loaded: {error}"

    def fail(work: dict[str, Any]) -> dict[str, Any]:
        del work
        raise SimulationError(reason)

    return fail


def _reserve_stdout() -> BinaryIO:
    """Return the pipe to the emulator, and redirect what libraries print to standard error."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _address_space_bytes() -> int:
    """Return the address space in use; the libraries reserve much and touch little of it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _read_stdin(inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    while header := sys.stdin.buffer.read(8):
        inbox.put(json.loads(sys.stdin.buffer.read(int.from_bytes(header))))
    os._exit(0)  # the emulator is gone; do not wait for a simulation to finish


if __name__ == "__main__":
    main()
