"""Commands, types and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "CONFIG_OPTION",
    "FALLBACK_OPTION",
    "JSON_OPTION",
    "Command",
    "Duration",
    "Group",
    "Seconds",
    "constraint_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_DAY = 86400.0

CONFIG_OPTION = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Path of qrmi_config.json; by default $QPU_CONFIG.",
)
FALLBACK_OPTION = click.option(
    "--fallback",
    metavar="NAME[,NAME…]",
    help="The QPUs to go on with if the QPU goes away, in order; by default $QPU_FALLBACK.",
)
_MIN_QUBITS = click.option(
    "--min-qubits", type=int, metavar="N", help="Only QPUs with at least N qubits."
)
_TYPE = click.option(
    "--type", "type_", metavar="TYPE", help="Only QPUs of this type, or that match: 'ibm-*'."
)
_WHERE = click.option(
    "--where",
    metavar="CONDITION",
    help="Only QPUs for which this holds: 'queue < 10 and \"cz\" in gates'.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def constraint_options(command: F) -> F:
    """Add the options that say what a QPU must be."""
    return _MIN_QUBITS(_TYPE(_WHERE(command)))


class Command(click.Command):
    """A command that refuses an option of one value if it is given twice; Click uses the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in order:
            is_single = isinstance(param, click.Option) and not (
                param.multiple or param.count or param.is_flag
            )
            if is_single and order.count(param) > 1 and not ctx.resilient_parsing:
                raise click.UsageError(
                    f"{param.opts[0]} was given {order.count(param)} times; must be given once. "
                    "Keep one of the values.",
                    ctx,
                )
        return super().parse_args(ctx, args)


class Group(Command, click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


class Duration(click.FloatRange):
    """A number from 0 to a maximum; never `nan`.

    Args:
        maximum: The maximum.
    """

    def __init__(self, maximum: float) -> None:
        super().__init__(min=0, max=maximum)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the command line's value."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not in the range 0<=x<={self.max}.", param, ctx)
        return number


class Seconds(Duration):
    """A number of seconds, at most a day."""

    def __init__(self) -> None:
        super().__init__(_DAY)
