"""Durations of an emulated QPU's work: a fixed number of seconds, or a distribution."""

from __future__ import annotations

import random
from dataclasses import dataclass

from qrmi_workflows.errors import EmulatorError

__all__ = ["Duration"]

_FORMS = "a number, [low, high], {normal = [mean, deviation]} or {exponential = mean}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """A duration in seconds.

    Attributes:
        distribution: `fixed`, `uniform`, `normal` (truncated at zero) or `exponential`.
        first: The fixed value, the lower bound of `uniform`, or the mean.
        second: The upper bound of `uniform`, or the standard deviation of `normal`.
    """

    distribution: str = "fixed"
    first: float = 0.0
    second: float = 0.0

    @classmethod
    def parse(cls, value: object, where: str) -> Duration:
        """Parse a duration from a TOML value.

        Args:
            value: A number, a list of two numbers, or a table that names a distribution.
            where: The setting's name, for error messages.

        Raises:
            EmulatorError: The value has another form or is negative.
        """
        match value:
            case bool():
                pass
            case int() | float() if value >= 0:
                return cls(first=float(value))
            case [int() | float() as low, int() | float() as high] if 0 <= low <= high:
                return cls(distribution="uniform", first=float(low), second=float(high))
            case {"normal": [int() | float() as mean, int() | float() as deviation]} if (
                mean >= 0 and deviation >= 0
            ):
                return cls(distribution="normal", first=float(mean), second=float(deviation))
            case {"exponential": int() | float() as mean} if mean > 0:
                return cls(distribution="exponential", first=float(mean))
        raise EmulatorError(f"{where} = {value!r}: must be {_FORMS}, in seconds. Correct it.")

    @property
    def mean(self) -> float:
        """The mean in seconds, of a normal distribution before it is truncated."""
        return (self.first + self.second) / 2 if self.distribution == "uniform" else self.first

    def draw(self, source: random.Random) -> float:
        """Return a random duration in seconds, never negative."""
        if self.distribution == "uniform":
            return source.uniform(self.first, self.second)
        if self.distribution == "normal":
            return max(0.0, source.gauss(self.first, self.second))
        if self.distribution == "exponential":
            return source.expovariate(1 / self.first)
        return self.first
