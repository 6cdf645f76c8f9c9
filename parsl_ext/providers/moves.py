"""Blocks whose QPU has gone: they end, and the provider's next blocks hold the next QPU.

A call moves its tasks to another QPU by itself if its block may use that one. If not, its process
says so in a file (`$QPU_MOVE_FILE`), and the call fails with a `StepMovedError`. The block then
gets no more calls, and is cancelled when its last one has ended. Those that failed are run again in
the next block, where they find their tasks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.fallback_plan import Moved, plan_alone

__all__ = ["BlockMoves"]

# Parsl's own file, parsl.log, has only what is logged below the name `parsl`.
_run_log = logging.getLogger("parsl.qpu.fallback")


class BlockMoves:
    """The QPUs that a provider's blocks may fall back to; safe to use from any thread.

    Args:
        fallback: Their names, in order.
        is_in_stage: Whether the blocks use the lease of a stage: then calls only move by
            themselves.

    Attributes:
        moved: Where the next blocks go on.
        jobs: The jobs of all blocks that have asked for another QPU than they hold.
    """

    def __init__(self, fallback: Sequence[str], *, is_in_stage: bool) -> None:
        self.fallback = tuple(fallback)
        self.moved: Moved | None = None
        self.jobs: set[str] = set()
        self._is_in_stage = is_in_stage
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()

    def require_valid(self, qpus: Sequence[str]) -> None:
        """Refuse a fallback that blocks with these QPUs cannot have.

        Raises:
            RequestError: It makes no sense, or there are several QPUs.
            UnknownQPUError: One of them is not defined.
        """
        if not self.fallback or not qpus:
            return
        if len(qpus) > 1:
            raise RequestError(
                f"qpu_fallback={'|'.join(self.fallback)!r}: blocks that hold several QPUs can have "
                "no fallback. Leave it out, or ask for one QPU."
            )
        plan_alone(qpus[0], self.fallback)

    def options(self, file: Path) -> list[str]:
        """Return the options of `qpu lease exec` for a block.

        Args:
            file: Where the block says that it needs another QPU.
        """
        if not self.fallback:
            return []
        rest = self.fallback if self.moved is None else self.moved.rest
        options = [f"--fallback={','.join(rest)}"] if rest else []
        if self.moved is not None:
            options.append(f"--moved-from={','.join(self.moved.left)}")
        if rest and not self._is_in_stage:
            options.append(f"--move-file={file}")
        return options

    def expect(self, job_id: str, file: Path) -> None:
        """Look from now on for the file of a block."""
        with self._lock:
            self._files[job_id] = file

    def find(self) -> list[str]:
        """Return the jobs of the blocks that need another QPU than they hold, once each."""
        with self._lock:
            found = {
                job_id: moved
                for job_id, file in self._files.items()
                if (moved := Moved.read(file)) is not None
            }
            self.jobs |= found.keys()
            for job_id, moved in found.items():
                del self._files[job_id]
                if self.moved is None or len(moved.left) > len(self.moved.left):
                    self.moved = moved
                    _run_log.warning(
                        "QPU %s has gone (%s): the next blocks hold %s",
                        moved.left[-1], moved.reason.removesuffix("."), moved.qpu,
                    )  # fmt: skip
        return list(found)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Look no longer for the files of blocks that have ended."""
        with self._lock:
            for job_id in job_ids:
                self._files.pop(job_id, None)
