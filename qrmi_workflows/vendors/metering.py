"""What a task costs, as far as its payload and its result tell: shots, and seconds of execution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from qrmi_workflows.vendors.base import Vendor

__all__ = [
    "MeteringVendor",
    "ShotCountingVendor",
    "count_executions",
    "count_shots",
    "reported_seconds",
]


@runtime_checkable
class ShotCountingVendor(Protocol):
    """What a vendor adds if its payloads say how many shots they ask for."""

    def count_shots(self, content: Mapping[str, Any]) -> int | None:
        """Return how many shots a task takes in total; `None` if the payload does not say."""


@runtime_checkable
class MeteringVendor(Protocol):
    """What a vendor adds if its results say for how long the QPU worked on the task."""

    def reported_seconds(self, text: str) -> float | None:
        """Return for how many seconds the QPU executed a task, as its result says."""


def count_shots(vendor: Vendor, content: Mapping[str, Any]) -> int | None:
    """Return how many shots a payload asks for in total; `None` if that is not known."""
    if not isinstance(vendor, ShotCountingVendor):
        return None
    try:
        return vendor.count_shots(content)
    except Exception:  # of a vendor's package: only a number for the accounts would be missing
        return None


def count_executions(vendor: Vendor, content: Mapping[str, Any]) -> int | None:
    """Return about how many shots a task takes, also if the vendor chooses them.

    A vendor that can tell more than `count_shots` has a method `count_executions`.
    """
    shots = count_shots(vendor, content)
    count = getattr(vendor, "count_executions", None)  # optional
    if shots is not None or count is None:
        return shots
    try:
        return None if (found := count(content)) is None else int(found)
    except Exception:  # as above
        return None


def reported_seconds(vendor: Vendor, text: str) -> float | None:
    """Return for how many seconds the QPU executed a task, if its vendor's result says so."""
    if not isinstance(vendor, MeteringVendor):
        return None
    try:
        return vendor.reported_seconds(text)
    except Exception:  # as above
        return None
