"""The emulated QPUs in requests: they are taken as named, and nobody is asked about them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qrmi_workflows.config.constraints import QPUConstraint
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.vendors.emulated import find_emulated

__all__ = ["choose_emulated", "is_for_emulated", "require_emulated"]


def is_for_emulated(constraint: QPUConstraint) -> bool:
    """Return whether a request names only emulated QPUs."""
    return bool(constraint.names) and all(map(is_emulated, constraint.names))


def require_emulated(constraints: Sequence[QPUConstraint]) -> None:
    """Refuse emulated QPUs that there are not, also those that may never be chosen.

    Raises:
        RequestError: A name has another form, or there is no such model.
    """
    for name in [name for each in constraints for name in each.names if is_emulated(name)]:
        try:
            find_emulated(name)
        except RequestError:
            raise
        except ConfigError:  # the nodes of the job may have the package
            continue


def choose_emulated(constraint: QPUConstraint, used: Collection[str]) -> str | None:
    """Return the first emulated QPU of a request that no other part of the request has, if any."""
    names = (each for each in constraint.names if is_emulated(each))
    return next((each for each in names if each not in used), None)
