"""The `QPU_*` variables: how those with a value are read."""

from __future__ import annotations

import pytest

from qrmi_workflows.config import variables
from qrmi_workflows.config.variables import (
    coalesces_by_default,
    journal_days,
    kill_wait_seconds,
    lane_wait_seconds,
    on_stop,
    requested_lanes,
)
from qrmi_workflows.errors import ConfigError

NUMBERS = [
    ("journal_days", "QPU_JOURNAL_DAYS"),
    ("kill_wait_seconds", "QPU_KILL_WAIT"),
    ("lane_wait_seconds", "QPU_LANE_WAIT"),
]


def test_lanes_are_not_requested_by_default():
    assert requested_lanes({}) is None
    assert requested_lanes({"QPU_LANES": ""}) is None
    assert requested_lanes({"QPU_LANES": "3"}) == 3


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " 3", "3 "])
def test_lanes_must_be_a_positive_integer(value):
    with pytest.raises(ConfigError) as caught:
        requested_lanes({"QPU_LANES": value})

    assert str(caught.value) == (
        f"$QPU_LANES={value!r}: must be a positive integer. Correct or unset it."
    )


def test_the_journal_keeps_inactive_steps_for_90_days_by_default():
    assert journal_days({}) == 90
    assert journal_days({"QPU_JOURNAL_DAYS": ""}) == 90
    assert journal_days({"QPU_JOURNAL_DAYS": "7.5"}) == 7.5
    assert journal_days({"QPU_JOURNAL_DAYS": "0"}) == 0


def test_a_task_waits_a_day_for_a_lane_by_default():
    assert lane_wait_seconds({}) == 86400
    assert lane_wait_seconds({"QPU_LANE_WAIT": "0"}) == 0


def test_kill_wait_is_unknown_by_default():
    assert kill_wait_seconds({}) is None
    assert kill_wait_seconds({"QPU_KILL_WAIT": ""}) is None
    assert kill_wait_seconds({"QPU_KILL_WAIT": "60"}) == 60


def test_the_grace_of_a_supervisor_takes_precedence_over_kill_wait():
    assert kill_wait_seconds({"QPU_KILL_WAIT": "60", "QPU_GRACE": "5"}) == 5


@pytest.mark.parametrize(("reader", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_duration_must_be_a_number_and_not_negative(reader, name, value):
    with pytest.raises(ConfigError) as caught:
        getattr(variables, reader)({name: value})

    assert str(caught.value) == (
        f"${name}={value!r}: must be a non-negative number. Correct or unset it."
    )


def test_the_tasks_of_a_stopped_step_are_cancelled_by_default():
    assert on_stop({}) == on_stop({"QPU_ON_STOP": ""}) == "cancel"
    assert on_stop({"QPU_ON_STOP": "cancel"}) == "cancel"
    assert on_stop({"QPU_ON_STOP": "leave"}) == "leave"


def test_the_treatment_of_stopped_tasks_must_be_a_known_one():
    with pytest.raises(ConfigError) as caught:
        on_stop({"QPU_ON_STOP": "keep"})

    assert str(caught.value) == (
        "$QPU_ON_STOP='keep': must be `cancel` or `leave`. Correct or unset it."
    )


def test_every_variable_is_documented_once_as_the_users_or_as_internal():
    names = {name for name in variables.__all__ if name.startswith("QPU_")}

    assert {getattr(variables, name) for name in names} == names
    assert names == {*variables.USER_VARIABLES, *variables.INTERNAL_VARIABLES}
    assert not set(variables.USER_VARIABLES) & set(variables.INTERNAL_VARIABLES)


def test_tasks_are_not_left_if_nobody_will_run_the_step_again(tmp_path):
    environ = {"QPU_ON_STOP": "leave", "QPU_ALIVE": str(tmp_path / "alive")}
    (tmp_path / "alive").touch()
    assert on_stop(environ) == "leave"

    (tmp_path / "alive").unlink()

    assert on_stop(environ) == "cancel"
    assert on_stop({**environ, "QPU_ALIVE": ""}) == "leave"


def test_tasks_are_coalesced_by_default_only_if_the_user_says_so():
    assert not coalesces_by_default({})
    assert not coalesces_by_default({"QPU_COALESCE": "0"})
    assert coalesces_by_default({"QPU_COALESCE": "1"})
    with pytest.raises(ConfigError, match=r"QPU_COALESCE='yes': must be `1` or `0`"):
        coalesces_by_default({"QPU_COALESCE": "yes"})
