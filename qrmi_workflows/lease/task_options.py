"""The options of one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from qrmi_workflows.client.protocol import TaskState
    from qrmi_workflows.config.variables import OnStop
    from qrmi_workflows.payloads import Payload, PayloadLike
    from qrmi_workflows.tasks.limits import Coalesce, OnAmbiguous

__all__ = ["TaskOptions"]


class TaskOptions(TypedDict, total=False):
    """Options of a task (see `Lease.submit`)."""

    on_state: Callable[[str, TaskState], None] | None
    on_stop: OnStop | None
    on_ambiguous: OnAmbiguous
    coalesce: bool | Coalesce | None
    on_move: Callable[[Payload, str, str], PayloadLike] | None
