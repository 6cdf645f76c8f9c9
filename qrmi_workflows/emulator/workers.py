"""The pool of worker processes that run the simulations.

A simulation runs in a separate process so that it can be stopped (the worker is killed and
replaced), has a memory limit, and never delays an HTTP request. A worker exits when the emulator
does, because its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

from qrmi_workflows.emulator.simulators import Outcome, SimulationError
from qrmi_workflows.emulator.simulators.clock import TOO_LONG

__all__ = ["WorkerPool"]

# One thread per worker unless the user says otherwise: several workers share the cores.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class _Worker:
    """One process, which runs one simulation at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, simulator: str, memory_bytes: int) -> _Worker:
        environment = {**dict.fromkeys(_THREADS, "1"), **os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # do not import modules from the working directory
            "-m",
            "qrmi_workflows.emulator.worker",
            simulator,
            str(memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches only the emulator
        )
        return cls(process)

    @property
    def is_alive(self) -> bool:
        """Whether the process is running, as far as the event loop knows."""
        return self._process.returncode is None

    async def run(self, work: dict[str, Any]) -> dict[str, Any]:
        """Run one simulation.

        Raises:
            EOFError: The process has died. The argument is its exit status.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError("no pipes")
        body = json.dumps(work).encode()
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
    """Idle worker processes by simulator, and a limit on the busy ones.

    Args:
        size: The number of simulations that may run at once.
        memory_gib: The memory limit of one simulation, in GiB.
    """

    def __init__(self, size: int, memory_gib: float) -> None:
        self._slots = asyncio.Semaphore(size)
        self._memory_bytes = int(memory_gib * 2**30)
        self._idle: defaultdict[str, list[_Worker]] = defaultdict(list)
        self._background: set[asyncio.Task[None]] = set()
        self._stopped = False

    def warm(self, simulator: str) -> None:
        """Start a worker in the background, so that the first task does not wait for imports."""
        self._in_background(self._add(simulator))

    async def run(self, simulator: str, work: dict[str, Any]) -> Outcome:
        """Run one simulation. Cancelling this coroutine kills its worker.

        Args:
            simulator: The simulator's name, one of `SIMULATORS`.
            work: The argument of the simulator's `run`.

        Raises:
            SimulationError: The simulation failed, or its worker died.
        """
        async with self._slots:
            idle = self._idle[simulator]
            while idle and not idle[-1].is_alive:
                idle.pop()
            worker = idle.pop() if idle else await self._start(simulator)
            try:
                answer = await worker.run(work)
            except EOFError as error:
                if error.args[0] == TOO_LONG:
                    raise SimulationError(
                        f"the simulation was stopped after {work['limit_seconds']:g} s of "
                        "computing time: the circuit entangles too many qubits. Use fewer qubits "
                        "or layers, or set simulation_seconds in the emulator's settings file."
                    ) from error
                raise SimulationError(
                    f"the simulator exited with status {error.args[0]}; the circuit probably needs "
                    f"more than its {self._memory_bytes / 2**30:g} GiB of memory"
                ) from error
            except BaseException:
                self._in_background(self._replace(worker, simulator))
                raise
            idle.append(worker)
        if "error" in answer:
            raise SimulationError(answer["error"], answer["logs"])
        return Outcome(result=answer["result"], logs=answer["logs"])

    def stop_starting(self) -> None:
        """Start no more workers in the background."""
        self._stopped = True

    async def stop(self) -> None:
        """Kill all workers and wait until they have exited."""
        self.stop_starting()
        for task in tuple(self._background):
            with contextlib.suppress(Exception):
                await task
        workers = [worker for idle in self._idle.values() for worker in idle]
        await asyncio.gather(*(worker.kill() for worker in workers))

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # The event loop holds only a weak reference to a task.
        task = asyncio.ensure_future(coroutine)
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
