"""Types of options that several commands share."""

from __future__ import annotations

import click
import pytest

from qrmi_workflows.cli.types import Duration, Seconds


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("1.5", 1.5), ("86400", 86400.0)])
def test_a_number_of_seconds_is_at_most_a_day(text, seconds):
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["-1", "86401", "inf", "nan", "soon", ""])
def test_other_values_are_refused(text):
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


def test_a_duration_has_its_own_maximum():
    assert Duration(10.0).convert("10", None, None) == 10.0
    with pytest.raises(click.BadParameter, match="0<=x<=10"):
        Duration(10.0).convert("11", None, None)
