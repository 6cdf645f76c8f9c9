"""What a task is expected to take, and what it has taken: shots and QPU seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

__all__ = ["Amount", "Cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """An amount of a QPU's time.

    Attributes:
        shots: A number of shots; `None` if not known.
        seconds: QPU seconds, to a millisecond; `None` if not known.
        origin: Where the seconds come from (`vendor's figures`).
    """

    shots: int | None = None
    seconds: float | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        """Round the seconds, so that sums of milliseconds are exact."""
        if self.seconds is not None:
            object.__setattr__(self, "seconds", round(self.seconds, 3))

    @property
    def milliseconds(self) -> int | None:
        """The QPU seconds as an integer of milliseconds."""
        return None if self.seconds is None else round(self.seconds * 1000)

    def part(self, counts: tuple[int, int, int]) -> Self:
        """Return the share of some of a task's PUBs; all shares together are the whole amount.

        Args:
            counts: The numbers of PUBs before them, of them, and after them (`Portion.counts`).
        """
        before, own, after = counts
        of = before + own + after

        def share(total: int) -> int:
            return total * (before + own) // of - total * before // of

        milliseconds = self.milliseconds
        return replace(
            self,
            shots=None if self.shots is None else share(self.shots),
            seconds=None if milliseconds is None else share(milliseconds) / 1000,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one task costs.

    Attributes:
        estimate: What it was expected to take, before it was submitted.
        spent: What it has taken; `None` until its end is known.
        reservation: The id of what is reserved for it in budgets, if any applies.
        ledger: The ledger that has the reservation.
    """

    estimate: Amount
    spent: Amount | None = None
    reservation: str | None = None
    ledger: str | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read it from a record's file.

        Raises:
            KeyError, TypeError, ValueError: The document has another form.
        """
        spent = document["spent"]
        return cls(
            estimate=Amount(**document["estimate"]),
            spent=None if spent is None else Amount(**spent),
            reservation=document["reservation"],
            ledger=document["ledger"],
        )
