"""The plugin's own exception."""

from __future__ import annotations

from snakemake_interface_common.exceptions import WorkflowError

__all__ = ["QPURequestError"]


class QPURequestError(WorkflowError):
    """A request for a QPU that cannot be met; Snakemake shows its message without a traceback."""

    # snakemake 9.27.1 prints the `__traceback__` of every WorkflowError below its message
    # (`exceptions.format_error`). The user has to correct a rule, and our frames do not help.

    @property
    def __traceback__(self) -> None:
        """Always `None`."""

    @__traceback__.setter
    def __traceback__(self, value: object) -> None:
        # `contextlib` assigns to it while the exception passes through a context manager.
        """Ignore the assignment."""
