"""A submission under way: a call of QRMI's `task_start`, which may outlive the wait for it.

QRMI returns a task's id only when the vendor has accepted the task, which can take as long as the
QPU's lanes are taken. A call cannot be interrupted: if nobody waits for it any longer, it goes on,
and the task may be accepted at any time until the process ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait

from qrmi_workflows.client.handles import Call

__all__ = ["StartCall", "Submissions"]


class StartCall:
    """One submission, started by `QRMIResource.begin_task`.

    Args:
        call: The call of the handle.
        classify: Translates an exception of the call.
    """

    def __init__(self, call: Call, classify: Callable[[BaseException], BaseException]) -> None:
        self._call = call
        self.classify = classify
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long ago the call was started."""
        return time.monotonic() - self._started

    def is_answered(self, seconds: float) -> bool:
        """Wait for the vendor's answer, at most so many seconds; return whether there is one."""
        return bool(wait([self._call], timeout=seconds).done)

    def task_id(self) -> str:
        """Return the task's id, once the vendor has answered.

        Raises:
            ResourceError, ConfigError: The vendor did not accept the task, or may not have.
        """
        error = self._call.exception()
        if error is not None:
            raise self.classify(error) from error
        return str(self._call.result())

    def when_answered(self, then: Callable[[StartCall], object]) -> None:
        """Call a function once the vendor has answered, in the call's thread or in this one."""
        self._call.add_done_callback(lambda _: then(self))


class Submissions:
    """This process's submissions that the vendor has not answered; a fork starts with none.

    Attributes:
        lock: Held from asking for a free lane until the lane's task is sent.
        unanswered: The calls.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.unanswered: set[Call] = set()
        self._pid = os.getpid()

    def in_this_process(self) -> Submissions:
        """Return this object, or a new one in a forked child."""
        return self if self._pid == os.getpid() else Submissions()
