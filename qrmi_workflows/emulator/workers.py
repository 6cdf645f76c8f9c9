"""The pool of worker processes that simulate.

A worker is a process of its own, so that a simulation can be stopped (the worker is killed and
replaced), cannot take more than its share of memory, and never holds up an HTTP request. It ends
by itself when the emulator is gone: its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections import defaultdict
from typing import Any

from qrmi_workflows.emulator.simulators import Outcome, SimulationError

__all__ = ["WorkerPool"]

_log = logging.getLogger(__name__)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class _Worker:
    """One process, which runs one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, simulator: str, memory_bytes: int) -> _Worker:
        environment = {**dict.fromkeys(_THREADS, "1"), **os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the user's folder is not ours to import
            "-m",
            "qrmi_workflows.emulator.worker",
            simulator,
            str(memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the emulator, which ends its workers
        )
        return cls(process)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended, as far as is known."""
        return self._process.returncode is None

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job.

        Raises:
            EOFError: The process ended; its exit status is the error's argument.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError("no pipes")
        body = json.dumps(job).encode()
        try:
            stdin.write(len(body).to_bytes(8) + body)
            await stdin.drain()
            size = int.from_bytes(await stdout.readexactly(8))
            answer: dict[str, Any] = json.loads(await stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError(await self._process.wait()) from error
        return answer

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class WorkerPool:
    """Worker processes by simulator, at most so many busy at a time.

    Args:
        size: How many jobs may run at a time.
        memory_gib: The memory that a job may use, in GiB.
    """

    def __init__(self, size: int, memory_gib: float) -> None:
        self._slots = asyncio.Semaphore(size)
        self._memory_bytes = int(memory_gib * 2**30)
        self._idle: defaultdict[str, list[_Worker]] = defaultdict(list)
        self._background: set[asyncio.Task[None]] = set()
        self._stopped = False

    def warm(self, simulator: str) -> None:
        """Start a worker in the background, so that the first task need not wait for it."""
        self._in_background(self._add(simulator))

    async def run(self, simulator: str, job: dict[str, Any]) -> Outcome:
        """Simulate; cancelling this coroutine kills the worker.

        Raises:
            SimulationError: The job cannot be simulated, or the worker died of it.
        """
        async with self._slots:
            idle = self._idle[simulator]
            while idle and not idle[-1].is_alive:
                idle.pop()
            worker = idle.pop() if idle else await self._start(simulator)
            try:
                answer = await worker.run(job)
            except EOFError as error:
                raise SimulationError(
                    f"the simulator ended with status {error.args[0]}: most likely the circuit "
                    f"needs more than its {self._memory_bytes / 2**30:g} GiB of memory"
                ) from error
            except BaseException:
                self._in_background(self._replace(worker, simulator))
                raise
            idle.append(worker)
        if "error" in answer:
            raise SimulationError(answer["error"], answer["logs"])
        return Outcome(result=answer["result"], logs=answer["logs"])

    def retire(self) -> None:
        """Start no more workers."""
        self._stopped = True

    async def stop(self) -> None:
        """Kill all workers and wait until they are gone."""
        self.retire()
        for task in tuple(self._background):
            with contextlib.suppress(Exception):
                await task
        workers = [worker for idle in self._idle.values() for worker in idle]
        await asyncio.gather(*(worker.kill() for worker in workers))

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _start(self, simulator: str) -> _Worker:
        return await _Worker.start(simulator, self._memory_bytes)

    async def _add(self, simulator: str) -> None:
        if not self._stopped:
            self._idle[simulator].append(await self._start(simulator))

    async def _replace(self, worker: _Worker, simulator: str) -> None:
        await worker.kill()
        await self._add(simulator)
