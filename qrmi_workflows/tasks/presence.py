"""Whether a QPU is still there, for tasks that may move to another one if it is not."""

from __future__ import annotations

import logging
import threading
import time

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import QPUError, QPUGoneError

__all__ = ["Presence"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two questions, whatever the number of tasks: they cost milliseconds
_STATUS_SECONDS = 5.0
_NEXT_MESSAGE = 60.0


class Presence:
    """What is known of a QPU's state; safe to use from any thread.

    Args:
        resource: The QPU.
        patience: For how many seconds to wait for a task that may not move: the QPU has it, or may
            have it, and cannot be reached or does not give it back.

    Attributes:
        left: Why no task is submitted to it any more; `None` as long as tasks are.
    """

    def __init__(self, resource: QRMIResource, patience: float) -> None:
        self.resource = resource
        self.patience = patience
        self.left: str | None = None
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._offline: str | None = None
        self._offline_looks = 0
        self._is_silent = False
        self._told = float("-inf")

    def leave(self, reason: str) -> None:
        """Submit nothing to the QPU any more: the step goes on elsewhere."""
        self.left = self.left or reason

    def require(self) -> None:
        """Refuse a submission to a QPU that is offline, or that the step has left.

        Raises:
            QPUGoneError: It is; nothing was submitted.
        """
        reason = self.left or self.offline()
        if reason is not None:
            name = self.resource.name
            raise QPUGoneError(
                f"QPU {name!r} has gone: {reason}. The task was not submitted to it.",
                name, "status", retryable=True, had_no_effect=True,
            )  # fmt: skip

    def offline(self) -> str | None:
        """Return in words that the vendor reports the QPU offline; `None` if it does not.

        The vendor is asked at most once a second.
        """
        self._look(_LOOK_SECONDS)
        return self._offline

    def is_lost(self) -> bool:
        """Return whether it was offline twice in succession: only then, tasks are taken back."""
        return self.offline() is not None and self._offline_looks > 1

    def is_still_lost(self) -> bool:
        """Ask once more, before a task is taken back: it starts as soon as its QPU is back."""
        self._look(0.0, waits=True)
        return self._offline is not None

    def find_reason(self, error: QPUError) -> str | None:
        """Return why the QPU counts as gone after a failure; `None` if it does not.

        Args:
            error: The failure of a task that the QPU does not have.
        """
        if isinstance(error, QPUGoneError) or self.left is not None:
            return self.left or self._offline or error.message
        self._look(0.0, waits=True)
        if self._offline is not None:
            return self._offline
        if self._is_silent and error.retryable:
            return f"its vendor cannot be reached: {error.message.removesuffix('.')}"
        return None

    def tell_of_silence(self, waited: float, error: BaseException) -> None:
        """Say that the vendor does not answer for a task that it has (`retry`'s `before_pause`)."""
        self.tell(f"a task may still be run and billed: {error}", waited)

    def tell(self, what: str, waited: float) -> None:
        """Say from time to time that a task is waited for, and for how long."""
        now = time.monotonic()
        if now - self._told >= _NEXT_MESSAGE:
            self._told = now
            logger.warning(
                "%s; waiting for it for %.0f s so far, at most %.0f s", what, waited, self.patience
            )

    def _look(self, max_age: float, *, waits: bool = False) -> None:
        # One thread asks; meanwhile, the others go by what was known before.
        if time.monotonic() - self._asked < max_age or not self._lock.acquire(blocking=waits):
            return
        try:
            self._ask()
        finally:
            self._asked = time.monotonic()
            self._lock.release()

    def _ask(self) -> None:
        try:
            status = self.resource.status(deadline=_STATUS_SECONDS)
        except QPUError:  # it may be there all the same
            self._offline, self._offline_looks, self._is_silent = None, 0, True
            return
        self._is_silent = False
        if str(status.status).rpartition(".")[2] != "Offline":
            self._offline, self._offline_looks = None, 0
            return
        reason = str(status.status_reason or "").strip()
        self._offline = f"its vendor reports it offline{f' ({reason})' if reason else ''}"
        self._offline_looks += 1
