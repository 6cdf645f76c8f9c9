"""The vendors' APIs that the emulator speaks, one module each, found by entry point.

A dialect is a subclass of `Dialect` and one entry point in the group `qrmi_workflows.dialects`,
whose name is QRMI's resource type and whose value is the class. Any installed package can add one.
"""

from __future__ import annotations

from qrmi_workflows.emulator.dialects.base import Dialect
from qrmi_workflows.errors import EmulatorError
from qrmi_workflows.plugins import find_plugins

__all__ = ["GROUP", "Dialect", "known_types", "load_dialect"]

GROUP = "qrmi_workflows.dialects"


def known_types() -> tuple[str, ...]:
    """Return the resource types that have a dialect, sorted."""
    return tuple(sorted(find_plugins(GROUP)))


def load_dialect(resource_type: str) -> Dialect:
    """Import and return the dialect of a resource type.

    Raises:
        EmulatorError: No installed package adds a dialect of that type, it cannot be imported, or
            its own type differs.
    """
    try:
        plugin = find_plugins(GROUP)[resource_type]
    except KeyError:
        raise EmulatorError(
            f"resource type {resource_type!r} is unknown; allowed: {', '.join(known_types())}. "
            "Correct it, or install the package that adds it."
        ) from None
    try:
        dialect: Dialect = plugin.load()()
    except (ImportError, AttributeError) as error:
        raise EmulatorError(
            f"the dialect {plugin.value} of type {resource_type!r} cannot be loaded: {error}. "
            "Repair or uninstall the package that adds it."
        ) from error
    if dialect.type != resource_type:
        raise EmulatorError(
            f"the dialect {plugin.value} is of type {dialect.type!r}, but its entry point is "
            f"named {resource_type!r}. Give both the same name."
        )
    return dialect
