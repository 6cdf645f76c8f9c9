"""Deleting ended tasks at vendors at which they would otherwise keep their lanes."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import JournalError, QPUError, TaskUnknownError
from qrmi_workflows.vendors.base import ResourceType

if TYPE_CHECKING:
    from qrmi_workflows.journal.step import Entry

__all__ = ["TaskDeletions"]

logger = logging.getLogger(__name__)

_SECONDS = 5.0  # deadline of a request: the result of the next task waits for it


class TaskDeletions:
    """Deletes the ended tasks of one QPU, if its vendor says that QRMI can.

    It is safe to use from any thread. A failed deletion is harmless. It is tried again after the
    next task, when the QPU is released, and by a rerun of the step.

    Args:
        resource: The QPU.
        traits: How QRMI reaches its type; `None` if no installed vendor has it.
    """

    def __init__(self, resource: QRMIResource, traits: ResourceType | None) -> None:
        self.is_needed = traits is not None and traits.stop_deletes_finished
        self._resource = resource
        self._lock = threading.Lock()
        # With the id, because the entry may have been reset since, and be of another task now.
        self._failed: list[tuple[str, Entry]] = []

    def delete(self, entry: Entry) -> None:
        """Delete a task whose end is recorded in the journal."""
        if self.is_needed and entry.record.task_id and not entry.record.deleted:
            self._delete([*self._take_failed(), (entry.record.task_id, entry)])

    def try_again(self, seconds: float) -> None:
        """Delete the tasks whose deletion has failed.

        Args:
            seconds: How long the vendor may take to answer.
        """
        self._delete(self._take_failed(), seconds)

    def _take_failed(self) -> list[tuple[str, Entry]]:
        with self._lock:
            failed, self._failed = self._failed, []
        return failed

    def _delete(self, tasks: list[tuple[str, Entry]], seconds: float = _SECONDS) -> None:
        for index, (task_id, entry) in enumerate(tasks):
            try:
                self._resource.task_stop(task_id, deadline=seconds)
            except TaskUnknownError:
                pass  # it has been deleted before
            except QPUError as error:
                logger.info("task %s is not deleted yet: %s", task_id, error)
                with self._lock:
                    self._failed += tasks[index:]
                return
            _record(task_id, entry)


def _record(task_id: str, entry: Entry) -> None:
    before = entry.record
    if before.task_id != task_id:
        return  # the task is being run again, under another id
    with suppress(JournalError), entry.holding(before.state) as is_held:
        if is_held:
            entry.deleted()
