"""What a user may ask for a task: to share it within limits, and what to do if it may be lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, Self

from qrmi_workflows.errors import RequestError

__all__ = ["Coalesce", "OnAmbiguous"]

OnAmbiguous = Literal["fail", "resubmit"]
"""The treatment of a task if it is not known whether the vendor accepted it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coalesce:
    """The limits within which payloads that wait for a lane at the same time go as one task.

    Attributes:
        max_pubs: The maximum number of PUBs of one task. The default is the number of circuits that
            IBM's backends give as `max_experiments`.
        max_shots: The maximum number of executions of one task: its shots, times the number of sets
            of parameter values. The default is what IBM allows a sampler
            (https://quantum.cloud.ibm.com/docs/guides/job-limits).
        wait: How many seconds the first payload waits for others at most, before it takes a lane.

    Raises:
        RequestError: A limit is not a positive number.
    """

    max_pubs: int = 300
    max_shots: int = 10_000_000
    wait: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_pubs", "max_shots"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(
                    f"Coalesce({name}={value!r}): must be a positive integer. Correct it, or leave "
                    "it out."
                )
        is_number = isinstance(self.wait, int | float) and not isinstance(self.wait, bool)
        if not is_number or not 0 <= self.wait < math.inf:
            raise RequestError(
                f"Coalesce(wait={self.wait!r}): must be a non-negative number of seconds. Correct "
                "it, or leave it out."
            )

    @classmethod
    def of(cls, value: bool | Coalesce | None) -> Self | None:
        """Return limits: the default ones for `True`, `None` for `False` and `None`.

        Raises:
            RequestError: It is something else.
        """
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        if value is None or value is False:
            return None
        names = ", ".join(f"{field.name}=…" for field in fields(cls))
        raise RequestError(
            f"coalesce={value!r}: must be True, False or limits. Write `Coalesce({names})`."
        )
