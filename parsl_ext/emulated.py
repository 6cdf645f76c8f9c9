"""What a block needs for an emulated QPU: one node, and a model that the emulator has."""

from __future__ import annotations

from collections.abc import Iterable

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.errors import RequestError
from qrmi_workflows.vendors.emulated import find_emulated

__all__ = ["require_emulation"]


def require_emulation(qpus: Iterable[str], nodes: int = 1) -> None:
    """Refuse emulated QPUs that a block cannot have.

    Parameters
    ----------
    qpus : iterable of str
        The names of the block's QPUs, emulated or not.
    nodes : int
        The number of the block's nodes.

    Raises
    ------
    RequestError
        There is no such model, or the block has several nodes.
    """
    for qpu in filter(is_emulated, qpus):
        find_emulated(qpu)
        if nodes > 1:
            raise RequestError(
                f"nodes_per_block={nodes} with QPU {qpu!r}: must be 1, because only processes on "
                "the node of the block's lease reach its emulator. Leave out nodes_per_block."
            )
