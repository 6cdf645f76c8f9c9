"""Types of options that several commands share."""

from __future__ import annotations

import click
import pytest

from qrmi_workflows.cli import qpu
from qrmi_workflows.cli.types import Duration, Seconds


def single_options(command, path=()):
    """Yield each command's path with each of its options that take one value."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from single_options(
                command.get_command(click.Context(command), name), (*path, name)
            )
        return
    for param in command.params:
        if isinstance(param, click.Option) and not (param.is_flag or param.multiple):
            yield (*path, param.opts[0])


@pytest.mark.parametrize("path", list(single_options(qpu)), ids=" ".join)
def test_an_option_of_one_value_is_refused_if_it_is_given_twice(path):
    """Click uses the last value: `--qpu a --qpu b` would run on b without a word."""
    *command, option = path

    with pytest.raises(click.UsageError, match=f"{option} was given 2 times; must be given once"):
        qpu.main([*command, option, "1", f"{option}=2"], standalone_mode=False)


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
