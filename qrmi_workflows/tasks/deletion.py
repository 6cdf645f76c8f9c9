"""Deleting ended tasks at vendors at which they would otherwise keep their lanes."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import JournalError, QPUError, TaskUnknownError
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.vendors.base import ResourceType

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
        self._failed: list[Entry] = []

    def delete(self, entry: Entry) -> None:
        """Delete a task whose end is recorded in the journal."""
        if self.is_needed and entry.record.task_id and not entry.record.deleted:
            self._delete([*self._take_failed(), entry])

    def try_again(self, seconds: float) -> None:
        """Delete the tasks whose deletion has failed.

        Args:
            seconds: How long the vendor may take to answer.
        """
        self._delete(self._take_failed(), seconds)

    def _take_failed(self) -> list[Entry]:
        with self._lock:
            failed, self._failed = self._failed, []
        return failed

    def _delete(self, entries: list[Entry], seconds: float = _SECONDS) -> None:
        for index, entry in enumerate(entries):
            try:
                self._resource.task_stop(str(entry.record.task_id), deadline=seconds)
            except TaskUnknownError:
                pass  # it has been deleted before
            except QPUError as error:
                logger.info("task %s is not deleted yet: %s", entry.record.task_id, error)
                with self._lock:
                    self._failed += entries[index:]
                return
            with suppress(JournalError), entry.holding(entry.record.state) as is_held:
                if is_held:
                    entry.deleted()
