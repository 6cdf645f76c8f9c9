"""What a vendor's targets say about its QPUs, for choosing one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

__all__ = ["Capabilities", "DescribingVendor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a target says about a QPU, for choosing one.

    Attributes:
        qubits: How many qubits (atoms) a task can use; `None` if the target does not say.
        gates: The names of what a program can do with them, in the vendor's words: gates
            (`cz`), or channels of pulses (`rydberg_global`); `None` if the target does not say.
    """

    qubits: int | None = None
    gates: frozenset[str] | None = None

    @classmethod
    def of(cls, qubits: object, *gates: object) -> Self:
        """Return what a vendor's JSON says.

        Args:
            qubits: The number of qubits; anything but a positive integer says nothing.
            *gates: Lists of names of gates, all of which count; anything else says nothing.
        """
        is_number = isinstance(qubits, int) and not isinstance(qubits, bool) and qubits > 0
        lists = [each for each in gates if isinstance(each, list | tuple | frozenset | dict)]
        names = frozenset(name for each in lists for name in each if isinstance(name, str))
        return cls(qubits=int(str(qubits)) if is_number else None, gates=names or None)


@runtime_checkable
class DescribingVendor(Protocol):
    """What a vendor adds if its QPUs can be chosen by their capabilities."""

    def capabilities(self, target: str, *, qpu: str) -> Capabilities:
        """Return what a target says about a QPU.

        Args:
            target: The vendor's JSON.
            qpu: The QPU's name; a target may describe several.

        Raises:
            ResultError: The text is not a target of this vendor.
        """
