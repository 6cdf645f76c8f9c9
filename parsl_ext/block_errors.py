"""When an executor gives up on its blocks, instead of waiting for another one."""

from __future__ import annotations

import time

from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.error_handlers import simple_error_handler, windowed_error_handler
from parsl.jobs.states import JobState, JobStatus

__all__ = ["USER_ERRORS", "BlockErrors"]

USER_ERRORS = frozenset({2, 126, 127})
"""Exit codes of commands that would end in the same way again: `qpu` and others refuse a request
with 2, and bash exits with 126 or 127 if a command cannot be run or is not found."""

_REPLACED_SECONDS = 60.0
"""How long an executor with calls waits for another block after its last one has failed."""


class BlockErrors:
    """Let Parsl replace a lost block; fail all calls if that is of no use.

    This is the default `block_error_handler` of `QPUExecutor`; another executor takes an instance
    of its own. Parsl's own default, `simple_error_handler` (read in 2026.10.26), gives up as soon
    as all blocks so far have failed. With `init_blocks=1` that is the first one: if its vendor
    fails for a moment, or someone cancels it before its workers have registered, no call is ever
    retried in another.

    This one gives up if the last three blocks have failed, if all have failed and one of them did
    so by an error of the user's, or if all have failed and none is replaced. A block that ended
    before its workers had registered counts as failed, however it ended: HTEX sets the state of
    such a block to MISSING.
    """

    def __init__(self) -> None:
        self._failed_since: float | None = None

    def __repr__(self) -> str:
        return "BlockErrors()"  # part of an executor's own repr

    def __call__(self, executor: BlockProviderExecutor, status: dict[str, JobStatus]) -> None:
        """Check the states of an executor's blocks; Parsl calls this after each poll."""
        windowed_error_handler(executor, status)
        if executor.bad_state_is_set or not all(map(_has_failed, status.values())):
            self._failed_since = None
            return
        # Parsl's strategies replace a block at the same poll, except for "none". Without a block,
        # the calls would wait forever.
        now = time.monotonic()
        self._failed_since = self._failed_since or now
        is_replaced = executor.outstanding() == 0 or now - self._failed_since < _REPLACED_SECONDS
        if not is_replaced or any(block.exit_code in USER_ERRORS for block in status.values()):
            simple_error_handler(executor, status)


def _has_failed(block: JobStatus) -> bool:
    return block.state in (JobState.FAILED, JobState.MISSING)
