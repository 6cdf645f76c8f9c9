"""The vendors' APIs that the emulator speaks, one module each, found by entry point.

A dialect is a subclass of `Dialect` and one entry point in the group `qrmi_workflows.dialects`,
whose name is QRMI's resource type and whose value is the class. Any installed package can add one.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from qrmi_workflows.emulator.dialects.base import Dialect
from qrmi_workflows.errors import EmulatorError

__all__ = ["GROUP", "Dialect", "known_types", "load_dialect"]

GROUP = "qrmi_workflows.dialects"


def known_types() -> tuple[str, ...]:
    """Return the resource types that have a dialect, sorted."""
    return tuple(sorted(_entry_points()))


def load_dialect(resource_type: str) -> Dialect:
    """Import and return the dialect of a resource type.

    Raises:
        EmulatorError: No installed package adds a dialect of that type, it cannot be imported, or
            its own type differs.
    """
    try:
        entry_point = _entry_points()[resource_type]
    except KeyError:
        raise EmulatorError(
            f"resource type {resource_type!r} is unknown; allowed: {', '.join(known_types())}. "
            "Correct it, or install the package that adds it."
        ) from None
    try:
        dialect: Dialect = entry_point.load()()
    except (ImportError, AttributeError) as error:
        raise EmulatorError(
            f"the dialect {entry_point.value} of type {resource_type!r} cannot be loaded: {error}. "
            "Repair or uninstall the package that adds it."
        ) from error
    if dialect.type != resource_type:
        raise EmulatorError(
            f"the dialect {entry_point.value} is of type {dialect.type!r}, but its entry point is "
            f"named {resource_type!r}. Give both the same name."
        )
    return dialect


@cache
def _entry_points() -> dict[str, EntryPoint]:
    # Entry points are not loaded here, so that only the dialects in use are imported.
    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
