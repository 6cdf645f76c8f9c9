"""Cancelling a task: what the vendor says of its state is what counts."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import QPUError, ResourceError, TaskUnknownError
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.vendors.base import ResourceType

KEEPS = ResourceType(qrmi="X")
DELETES = ResourceType(qrmi="X", stop_deletes_finished=True)
UNKNOWN = TaskUnknownError("the vendor does not know the task")
REFUSED = ResourceError("refused")


class Vendor:
    """A resource that answers as it is told to, and counts the requests to cancel."""

    def __init__(self, states: Iterable[str | QPUError], stop: QPUError | None = None) -> None:
        self.states = iter(states)
        self.stop = stop
        self.stops = 0

    def task_status(self, task_id: str) -> str:
        state = next(self.states)
        if isinstance(state, QPUError):
            raise state
        return f"TaskStatus.{state}"

    def task_stop(self, task_id: str) -> None:
        self.stops += 1
        if self.stop is not None:
            raise self.stop


@pytest.mark.parametrize(
    ("states", "stop", "expected"),
    [
        (["Cancelled"], None, TaskState.CANCELLED),
        (["Cancelled"], REFUSED, TaskState.CANCELLED),  # its answer was lost
        (["Completed"], REFUSED, TaskState.COMPLETED),
        (["Running"], UNKNOWN, TaskState.RUNNING),  # there is no such route
        (["Running"], None, TaskState.RUNNING),  # it takes effect later
        ([UNKNOWN], None, TaskState.UNKNOWN),
        ([UNKNOWN], UNKNOWN, TaskState.UNKNOWN),
        ([REFUSED], None, TaskState.UNKNOWN),
    ],
)
def test_only_the_state_tells_what_became_of_the_task(states, stop, expected):
    assert cancel_task(Vendor(states, stop), "t", KEEPS)[0] is expected


@pytest.mark.parametrize(
    ("states", "stop", "expected"),
    [
        (["Running", UNKNOWN], None, TaskState.CANCELLED),  # deleted at our request
        (["Running", UNKNOWN], REFUSED, TaskState.UNKNOWN),
        (["Running", "Running"], REFUSED, TaskState.RUNNING),
    ],
)
def test_a_vendor_that_deletes_a_cancelled_task_no_longer_knows_it(states, stop, expected):
    assert cancel_task(Vendor(states, stop), "t", DELETES)[0] is expected


def test_a_task_that_has_ended_is_not_deleted_with_its_result():
    vendor = Vendor(["Completed"])

    assert cancel_task(vendor, "t", DELETES) == (TaskState.COMPLETED, "")
    assert vendor.stops == 0


def test_what_went_wrong_is_told():
    assert cancel_task(Vendor(["Running"], REFUSED), "t", KEEPS)[1] == "refused"
