"""The private emulator of an emulated QPU (`emulated:fez`), for one lease.

The emulator is a child process on the loopback address. It ends when the lease is released, or when
the process that holds the lease dies, however that happens.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from qrmi_workflows.config.emulated import is_emulated, loopback_variables
from qrmi_workflows.config.job import EMULATED, RESOURCE_ID, JobQPU
from qrmi_workflows.errors import ConfigError, LeaseError
from qrmi_workflows.vendors.emulated import EmulatedQPU, find_emulated

__all__ = ["PrivateEmulator", "describe_emulated", "reachable"]

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0  # a cold file system takes its time to import
_STOP_SECONDS = 2.0
_LOOK_MILLISECONDS = 100
_INVALID = 2  # the exit code of an invalid request


def describe_emulated(qpu: str) -> JobQPU:
    """Describe an emulated QPU that no emulator serves yet.

    Raises:
        RequestError: The name has another form, or there is no such model.
        ConfigError: The package that has the model may not be installed.
    """
    found = find_emulated(qpu)
    environment = {EMULATED: found.name, RESOURCE_ID: found.resource_id}
    return JobQPU(name=found.name, type=found.type, environment=environment, token=None)


@contextmanager
def reachable(qpu: JobQPU) -> Iterator[JobQPU]:
    """Yield a QPU that can be asked something; an emulated one gets an emulator for that.

    Args:
        qpu: The QPU, as `find_qpu` returns it.
    """
    if qpu.token is not None or not is_emulated(qpu.name):
        yield qpu
        return
    emulator = PrivateEmulator.start(qpu, threading.Event())
    try:
        yield emulator.qpu
    finally:
        emulator.stop()


class PrivateEmulator:
    """A running emulator with one QPU; created by `start`.

    Attributes:
        qpu: The QPU, with QRMI's settings for it.
    """

    def __init__(self, qpu: JobQPU, child: _Child) -> None:
        self.qpu = qpu
        self._child = child
        self._pid = os.getpid()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @classmethod
    def start(cls, qpu: JobQPU, stop: threading.Event) -> PrivateEmulator:
        """Start an emulator, and wait until it serves the QPU.

        Args:
            qpu: The QPU, as `describe_emulated` returns it.
            stop: Set this event to give up.

        Raises:
            ConfigError: A package that it needs is not installed.
            LeaseError: It did not start.
        """
        os.environ.update(loopback_variables())  # QRMI's client reads them when it is created
        started = time.monotonic()
        # Not a pipe: nobody reads what the emulator logs later on. The file has no name.
        with tempfile.TemporaryFile() as log:
            child = _Child(_argv(find_emulated(qpu.name)), log)
            try:
                settings = _await_settings(child, qpu.name, log, stop)
            except BaseException:
                child.end()
                raise
        logger.debug("emulator of %s: ready after %.2f s", qpu.name, time.monotonic() - started)
        return cls(replace(qpu, environment={**qpu.environment, **settings}), child)

    def stop(self) -> None:
        """End the emulator; in a fork of the process that has started it, do nothing."""
        if self._pid == os.getpid():
            self._child.end()


class _Child:
    """The emulator's process, with a pipe to it and one from it."""

    def __init__(self, argv: Sequence[str], log: IO[bytes]) -> None:
        reads, self._says_end = os.pipe()
        self.output, writes = os.pipe()
        try:
            # In a session of its own: a terminal's Ctrl-C is for the holder of the lease.
            self._process = subprocess.Popen(
                argv, stdin=reads, stdout=writes, stderr=log, start_new_session=True
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(reads)
            os.close(writes)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait()

    def end(self) -> None:
        """Tell it to end, and make sure that it does."""
        with suppress(OSError):
            os.write(self._says_end, b"\n")
        self._close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        for end in (self._says_end, self.output):
            os.close(end)


def _argv(qpu: EmulatedQPU) -> list[str]:
    argv = [sys.executable, "-P", "-m", "qrmi_workflows", "emulator", "private"]
    argv += [f"{qpu.resource_id}={qpu.type}:{qpu.model}", f"--parent={os.getpid()}"]
    return [*argv, "--noisy"] if qpu.is_noisy else argv


def _await_settings(
    child: _Child, qpu: str, log: IO[bytes], stop: threading.Event
) -> dict[str, str]:
    """Wait for the line in which the emulator says how QRMI reaches its QPU."""
    line, limit = b"", time.monotonic() + _START_SECONDS
    # With poll, because select takes no file descriptors from 1024 on.
    poll = select.poll()
    poll.register(child.output, select.POLLIN)
    while not line.endswith(b"\n"):
        if stop.is_set() or time.monotonic() > limit:
            raise LeaseError(
                f"the emulator of QPU {qpu!r} was not ready within {_START_SECONDS:g} s. Try "
                "again, on a less busy host.",
                qpu,
                retryable=True,
            )
        if poll.poll(_LOOK_MILLISECONDS):
            chunk = os.read(child.output, 65536)
            if not chunk:
                raise _failure(child, qpu, log)
            line += chunk
    settings: dict[str, Any] = json.loads(line)
    return {str(key): str(value) for key, value in settings.items()}


def _failure(child: _Child, qpu: str, log: IO[bytes]) -> Exception:
    code = child.wait()
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
    reason = last[0].removeprefix("qpu: ") if last else f"it exited with status {code}."
    text = f"the emulator of QPU {qpu!r} did not start: {reason}"
    return ConfigError(text) if code == _INVALID else LeaseError(text, qpu, retryable=True)
