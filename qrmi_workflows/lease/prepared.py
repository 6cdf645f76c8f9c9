"""A process that gets ready before the QPU is acquired, and works once it has the lease.

A lease is held while its command starts, and starting Python takes longer than many a task. So a
command of this package needs no interpreter of its own: the supervisor forks itself, the child
checks its input, and only then does the parent acquire the QPU. To the supervisor, the child is a
process like any other command: it can hang and be killed without harm to the lease.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Self

__all__ = ["PreparedProcess"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_READY = b"ready"


class PreparedProcess:
    """A forked process that waits for a lease; a context manager that ends it if it gets none.

    Args:
        work: What the process does. Its argument is a function that says that the process is ready,
            waits for the lease, and brings the lease's variables into `os.environ`. It ends with
            `SystemExit`, which becomes the process's exit code.

    Attributes:
        pid: Its process id.
        returncode: As in `subprocess.Popen`.
    """

    def __init__(self, work: Callable[[Callable[[], None]], NoReturn]) -> None:
        self.returncode: int | None = None
        is_ready, says_ready = os.pipe()
        has_lease, self._gives_lease = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or both processes would write what is in the buffer
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(is_ready)
            os.close(self._gives_lease)
            _end_with(parent)
            work(lambda: _wait_for_lease(says_ready, has_lease))
        os.close(says_ready)
        os.close(has_lease)
        self._is_ready = is_ready

    def wait_until_ready(self) -> int | None:
        """Wait until the process is ready; return its exit code if it has ended instead."""
        with os.fdopen(self._is_ready, "rb") as pipe:
            if pipe.read() == _READY:
                return None
        return _exit_code(self._wait(0))

    def start(self, environ: Mapping[str, str]) -> None:
        """Let the process work in this environment."""
        # It may have been killed in the meantime, which `poll` tells.
        with suppress(BrokenPipeError), os.fdopen(self._take_pipe(), "wb") as pipe:
            pipe.write(json.dumps(dict(environ)).encode())

    def poll(self) -> int | None:
        """Return the exit code once the process has ended, as `subprocess.Popen` does."""
        return self._wait(os.WNOHANG)

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._gives_lease >= 0:  # it has no lease, so there is nothing to clean up
            os.close(self._take_pipe())
            self.send_signal(signal.SIGKILL)
            self.poll()

    def _take_pipe(self) -> int:
        pipe, self._gives_lease = self._gives_lease, -1
        return pipe

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _end_with(parent: int) -> None:
    """Have the kernel send this process SIGTERM if its supervisor is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def _wait_for_lease(says_ready: int, has_lease: int) -> None:
    with os.fdopen(says_ready, "wb") as pipe:
        pipe.write(_READY)
    with os.fdopen(has_lease, "rb") as pipe:
        variables = pipe.read()
    if not variables:
        sys.exit(1)  # the QPU was not acquired, which the supervisor reports
    os.environ.clear()
    os.environ.update(json.loads(variables))


def _exit_code(code: int | None) -> int:
    """Return the exit code for a shell: 128 + N if signal N ended the process."""
    return 0 if code is None else code if code >= 0 else 128 - code
