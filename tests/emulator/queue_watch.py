"""Notes what a client is told of its tasks, which bounds what it can know of their time."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource

__all__ = ["QueueWatch"]


class QueueWatch:
    """Notes when this process last asked for the state of a task that was queued.

    A task is billed for less than the time from then to its end as the client sees it, however
    late that is on a loaded machine.

    Args:
        patch: Undoes the changes of `QRMIResource`, whose calls it watches.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._submitted: dict[int, float] = {}  # by thread
        self._queued: dict[str, float] = {}
        begin, ask = QRMIResource.begin_task, QRMIResource.task_status

        def begin_task(resource: QRMIResource, *arguments: Any, **options: Any) -> Any:
            self._submitted[threading.get_ident()] = time.time()
            return begin(resource, *arguments, **options)

        def task_status(resource: QRMIResource, task_id: str, **options: Any) -> Any:
            asked = time.time()
            status = ask(resource, task_id, **options)
            if TaskState.of(status) is TaskState.QUEUED:
                self._queued[task_id] = asked
            else:
                self._queued.setdefault(task_id, self._submitted[threading.get_ident()])
            return status

        patch.setattr(QRMIResource, "begin_task", begin_task)
        patch.setattr(QRMIResource, "task_status", task_status)

    def seconds_since_queued(self, *tasks: str) -> float:
        """Return how long ago the first of these tasks was last seen queued, or was submitted."""
        return time.time() - min(self._queued[task] for task in tasks)
