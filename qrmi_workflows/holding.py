"""What a lease holds: one acquired QPU, until it is given back."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from qrmi_workflows.acquire import acquire
from qrmi_workflows.config import lanes_wanted, load_site_policy
from qrmi_workflows.environment import JobQPU, describe_job, write_job
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError
from qrmi_workflows.exits import exit_put_off
from qrmi_workflows.gate import LaneGate, lane_gate
from qrmi_workflows.ledger import USAGE_VARIABLE, OpenLease, lanes_folder
from qrmi_workflows.resource import QRMIResource
from qrmi_workflows.retries import passing, repeated
from qrmi_workflows.schedulers.slurm import queue_wait

__all__ = ["Holding", "environment_of"]

logger = logging.getLogger(__name__)

_RENEWAL_SECONDS = 2.0
_RELEASE_SECONDS = 5.0  # with the last answer's own deadline it fits into Slurm's KillWait


class Holding:
    """One acquired QPU; made by `adopt` and `acquire`.

    Attributes:
        qpu: The QPU, with its acquisition token.
        resource: The QPU, as QRMI gives it; its tasks run under that token.
        ended: Whether it has been given back.
        queue_wait: What its job waited in the scheduler's queue, in seconds, where that is known;
            else the scheduler is asked.
    """

    def __init__(self, qpu: JobQPU, opened: OpenLease | None) -> None:
        self.qpu = qpu
        self.resource = _resource(qpu)
        self.ended = False
        self.queue_wait: float | None = None
        self._opened = opened
        self._pid = os.getpid()
        self._renewed = float("-inf")
        self._lock = threading.Lock()
        self._renewing = threading.Lock()

    @classmethod
    def adopt(cls, carried: JobQPU) -> Self:
        """Use what another process has acquired, and gives back."""
        return cls(carried, None)

    @classmethod
    def acquire(
        cls, found: JobQPU, *, step: str, config: Path | None, stop: threading.Event
    ) -> Self:
        """Acquire a QPU, and note it in the user's ledger.

        Args:
            found: The QPU, as `find_qpu` gives it.
            step: The name of the step that it is held for.
            config: The `qrmi_config.json` that defines it.
            stop: Set to ask the vendor no more.

        Raises:
            ConfigError: The QPU's settings are incomplete.
            LeaseError: The vendor did not grant it.
        """
        before = time.monotonic()
        # Some vendors' handles take the token from their settings alone: tasks get handles anew.
        held = replace(found, token=acquire(found, _resource(found), stop))
        try:
            opened = OpenLease.create(
                qpu=held.name,
                type=held.type,
                step=step,
                acquire=time.monotonic() - before,
                config=config,
                token=held.token or "",
            )
        except BaseException:  # what no record knows nobody would give back
            with suppress(QPUError):
                _resource(held).release(held.token or "")
            raise
        return cls(held, opened)

    @property
    def adopted(self) -> bool:
        """Whether another process owns it, and gives it back: a parent, in a forked child."""
        return self._opened is None or self._pid != os.getpid()

    def usage_path(self, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Return where its tasks note what they used, when its owner looks there."""
        if self._opened is not None:
            return self._opened.usage_path
        named = environ.get(USAGE_VARIABLE)
        return Path(named) if named else None

    @functools.cached_property
    def gate(self) -> LaneGate:
        """The gate to the QPU's lanes, which all processes that share the lease pass."""
        folder = lanes_folder(self.qpu.name, self.usage_path())
        return lane_gate(_count_lanes(self.qpu.name, self.resource), folder)

    def renew(self) -> bool:
        """Acquire anew after the vendor has closed the session; only the owner may.

        Returns:
            Whether there is an open session now.

        Raises:
            LeaseError: The vendor did not grant it.
        """
        with self._renewing:
            if self._opened is None or self.adopted:
                return False
            if time.monotonic() - self._renewed < _RENEWAL_SECONDS:
                return True  # another lane has just done so
            name = self.qpu.name
            logger.warning("the vendor has closed the session of QPU %r; acquiring anew", name)
            unheld = replace(self.qpu, token=None)
            token = acquire(unheld, _resource(unheld), threading.Event())
            with self._lock:
                if not self.ended:
                    self.resource.use_token(token)
                    self.qpu = replace(self.qpu, token=token)
                    self._opened = self._opened.renewed(token)
                    self._renewed = time.monotonic()
                    return True
        with suppress(QPUError):  # given back while acquiring anew
            self.resource.release(token)
        return False

    def give_back(self) -> None:
        """Release the QPU and write the lease record; nothing is done to an adopted one.

        Raises:
            LeaseError: The vendor did not take it back.
        """
        with self._lock:
            self.ended = True
        if self._opened is None or self.adopted:
            return
        try:
            with exit_put_off():
                self._release()
                self._opened.close(queue_wait=self._waited())
        except QPUError as error:
            raise LeaseError(
                f"the lease of QPU {self.qpu.name!r} could not be released: {error} `qpu reap` "
                "tries again; the vendor ends it when its time to live is over.",
                self.qpu.name,
                retryable=True,
            ) from error

    def _release(self) -> None:
        repeated(
            lambda: self.resource.release(self.qpu.token or ""),
            passing,
            stop=threading.Event(),
            seconds=_RELEASE_SECONDS,
        )

    def _waited(self) -> float | None:
        job = os.environ.get("SLURM_JOB_ID")
        if job is None or self.queue_wait is not None:
            return self.queue_wait
        return queue_wait(job)


def environment_of(holdings: Iterable[Holding]) -> dict[str, str]:
    """Return the variables that let a child process adopt these; they hold credentials."""
    held = list(holdings)
    variables = describe_job() | write_job(holding.qpu for holding in held)
    usage = next((path for holding in held if (path := holding.usage_path())), None)
    return variables | ({USAGE_VARIABLE: str(usage)} if usage else {})


def _count_lanes(qpu: str, resource: QRMIResource) -> int:
    """Count the lanes of a QPU: as `$QPU_LANES`, the site or the vendor says, else one."""
    if (lanes := lanes_wanted()) is not None:
        return lanes
    with suppress(ConfigError):
        return load_site_policy().qpu(qpu).lanes
    with suppress(QPUError):
        capacity = resource.status().capacity
        if capacity is not None and capacity.max_slots:
            return int(capacity.max_slots)
    return 1


def _resource(qpu: JobQPU) -> QRMIResource:
    return QRMIResource(qpu.name, qpu.type, qpu.environment, token=qpu.token)
