"""Spans of time that commands are told."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = ["Span"]


class Span(click.FloatRange):
    """A number from 0 on that clocks know: neither `nan` nor more than `most`.

    Args:
        most: The largest.
    """

    def __init__(self, most: float) -> None:
        super().__init__(min=0, max=most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it from the command line."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not in the range 0<=x<={self.max}.", param, ctx)
        return number
