"""The polling law."""

from __future__ import annotations

import pytest

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.tasks.polling import next_pause


@pytest.mark.parametrize("duration", [0.0, 0.05, 0.5, 3.0, 60.0, 600.0])
def test_polling_adds_at_most_five_percent_and_ten_milliseconds(duration):
    seconds = 0.0
    while seconds < duration:
        seconds += next_pause(TaskState.RUNNING, seconds)

    assert seconds - duration <= 0.05 * duration + 0.010


def test_a_queued_task_is_polled_at_least_once_a_second():
    assert next_pause(TaskState.QUEUED, 3600.0) == 1.0


def test_a_long_task_is_polled_once_a_minute():
    assert next_pause(TaskState.RUNNING, 100_000.0) == 60.0
