"""The leases of several QPUs in one job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from qrmi_workflows.lease.at_exit import exit_deferred
from qrmi_workflows.lease.ending import finish
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.shared import lease_environment

__all__ = ["LeaseSet"]

logger = logging.getLogger(__name__)


class LeaseSet(Mapping[str, Lease]):
    """The leases of several QPUs in one job, by name; a context manager that releases them all."""

    def __init__(self, leases: Iterable[Lease]) -> None:
        self._leases = {lease.qpu: lease for lease in leases}

    def __getitem__(self, qpu: str) -> Lease:
        return self._leases[qpu]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leases)

    def __len__(self) -> int:
        return len(self._leases)

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process adopt these leases."""
        budget = next((lease.budget for lease in self.values()), None)
        return lease_environment((lease.held for lease in self.values()), budget=budget)

    def await_tasks(self) -> None:
        """Wait until all submitted tasks have ended; leaving a `with` block normally does so."""
        for lease in self.values():
            lease.await_tasks()

    def cancel_tasks(self) -> None:
        """Cancel all unfinished tasks, even if `$QPU_ON_STOP` would leave them for a rerun."""
        for lease in self.values():
            lease.cancel_tasks()

    def release(self) -> None:
        """Release all leases in parallel, so that all of them fit into KillWait.

        Raises:
            LeaseError: A release failed.
        """
        from concurrent.futures import ThreadPoolExecutor

        with exit_deferred():
            with ThreadPoolExecutor(max_workers=len(self)) as pool:
                releases = [pool.submit(lease.release) for lease in self.values()]
            failed = [error for each in releases if (error := each.exception()) is not None]
        for error in failed[1:]:
            logger.warning("%s", error)
        if failed:
            raise failed[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        finish(self, error)
