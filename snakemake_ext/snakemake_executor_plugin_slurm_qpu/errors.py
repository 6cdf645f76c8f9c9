"""The plugin's own exception."""

from __future__ import annotations

from snakemake_interface_common.exceptions import WorkflowError

__all__ = ["QPURequestError"]


class QPURequestError(WorkflowError):
    """A request that cannot be met: the user's to correct, so its message alone is shown."""

    @property
    def __traceback__(self) -> None:
        """None: Snakemake prints the traceback that a WorkflowError has below its message."""

    @__traceback__.setter
    def __traceback__(self, value: object) -> None:
        """Contextlib sets it on the way up."""
