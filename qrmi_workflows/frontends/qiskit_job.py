"""The job of Qiskit's primitives over a lease: one task."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import (
    QPUError,
    TaskCancelledError,
    TaskUnknownError,
    UndecodedResultError,
)
from qrmi_workflows.frontends.qiskit_backend import make_backend
from qrmi_workflows.frontends.qiskit_errors import job_errors, timed_out
from qrmi_workflows.vendors.ibm.target import backend_properties
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult
    from qiskit.providers import BackendV2, JobStatus

    from qrmi_workflows.lease.lease import Lease
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.tasks.future import TaskFuture

__all__ = ["job_class"]


@cache
def job_class() -> Any:
    """Return the class `LeaseJob`, whose base class is imported on first use."""
    from qiskit.primitives import BasePrimitiveJob

    return type("LeaseJob", (_Job, BasePrimitiveJob), {"__doc__": _Job.__doc__})


class _Job:
    """A task under a lease, with the interface of Qiskit's jobs.

    It has what `qiskit_ibm_runtime.RuntimeJobV2` has (0.51), as far as QRMI passes it on. Its
    errors are Qiskit's and QRMI's too, so that programs catch them as before.

    `job_id` is valid in this process only; `task_id` is the vendor's id, once known.
    """

    def __init__(self, lease: Lease, content: Mapping[str, Any]) -> None:
        super().__init__(str(uuid.uuid4()))  # type: ignore[call-arg]  # BasePrimitiveJob
        self._lease = lease
        self._content = content
        self._created = datetime.now(UTC)
        self._last_state = ""
        self._running_since: float | None = None
        self._ended: float | None = None
        self._future = lease.submit(content, on_state=self._record_state)
        self._future.add_done_callback(self._record_end)

    def __repr__(self) -> str:
        return f"<LeaseJob({self.task_id or 'not submitted yet'!r}, {self.primitive_id!r})>"

    @property
    def task_id(self) -> str | None:
        """The vendor's id of the task, once known."""
        return self._future.task_id

    @property
    def future(self) -> TaskFuture:
        """The future of the task's `QuantumResult`, which has its provenance."""
        return self._future

    def result(
        self,
        timeout: float | None = None,
        decoder: Any = None,
        poll_interval: float | None = None,  # noqa: ARG002 - for RuntimeJobV2's callers
    ) -> PrimitiveResult[Any]:
        """Wait for the result, and return it.

        Args:
            timeout: The maximum time to wait, in seconds.
            decoder: One of qiskit-ibm-runtime's `ResultDecoder`s to use instead, or several, each
                of which gets the output of the one before it.
            poll_interval: Ignored: the task is polled as `polling` says.

        Raises:
            TaskError: The task ended without a result.
            TimeoutError: The result was not available in time.
        """
        self.wait_for_final_state(timeout)
        with job_errors():
            result = self._kept_result()
            if decoder is None:
                return result.to_primitive_result()
        value: Any = result.vendor_result
        for each in decoder if isinstance(decoder, Sequence) else [decoder]:
            value = each.decode(value)
        decoded: PrimitiveResult[Any] = value
        return decoded

    def _kept_result(self) -> QuantumResult:
        try:
            return self._future.result()
        except UndecodedResultError as error:
            kept: QuantumResult = error.result
            return kept  # IBM's own package may decode what this one cannot

    def wait_for_final_state(
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,  # noqa: ARG002 - for RuntimeJobV2's callers
    ) -> None:
        """Wait for the task's end, whatever it is.

        Args:
            timeout: The maximum time to wait, in seconds.
            poll_interval: Ignored.

        Raises:
            TimeoutError: The task did not end in time.
        """
        if not self._future.wait(timeout):
            raise timed_out(timeout)

    def status(self) -> JobStatus:
        """Return the status that the vendor last reported."""
        from qiskit.providers import JobStatus

        if self.cancelled():
            return JobStatus.CANCELLED
        if self._future.done():
            return JobStatus.ERROR if self._future.exception() else JobStatus.DONE
        states = {"Queued": JobStatus.QUEUED, "Running": JobStatus.RUNNING}
        return states.get(self._last_state, JobStatus.INITIALIZING)

    def done(self) -> bool:
        """Return whether the task has completed with a result."""
        return self.in_final_state() and not self.cancelled() and not self._future.exception()

    def running(self) -> bool:
        """Return whether the task is running on the QPU."""
        return not self._future.done() and self._last_state == "Running"

    def cancelled(self) -> bool:
        """Return whether the task was cancelled, here or at the vendor."""
        if not self._future.done() or self._future.cancelled():
            return self._future.cancelled()
        return isinstance(self._future.exception(), TaskCancelledError)

    def errored(self) -> bool:
        """Return whether the task has ended without a result, and was not cancelled."""
        return self.in_final_state() and not self.cancelled() and not self.done()

    def in_final_state(self) -> bool:
        """Return whether the task has completed, failed or been cancelled."""
        return self._future.done()

    def cancel(self) -> None:
        """Cancel the task, also at the vendor."""
        self._future.cancel()

    def error_message(self) -> str | None:
        """Return why the task has failed; `None` if it has not."""
        return str(self._future.exception()) if self.errored() else None

    def logs(self) -> str:
        """Return the vendor's log of the task; empty if there is none, or no longer."""
        if self.task_id is None:
            return ""
        with job_errors():
            try:
                return self._lease.resource.task_logs(self.task_id)
            except TaskUnknownError:  # deleted once its result was in the journal
                return ""

    @property
    def creation_date(self) -> datetime:
        """When the task was submitted, in local time; by an earlier run of the step, perhaps."""
        return self._submitted().astimezone()

    def metrics(self) -> dict[str, Any]:
        """Return the task's timestamps, and its use of the QPU in seconds (see `usage`)."""
        running, ended = (_iso(moment) for moment in (self._running_since, self._ended))
        return {
            "timestamps": {
                "created": self._submitted().isoformat(),
                "running": running,
                "finished": ended,
            },
            "usage": {"quantum_seconds": self.usage(partial=True)},
        }

    def usage(self, partial: bool = False) -> float:
        """Return for how many seconds the QPU ran the task; 0 until it has ended.

        QRMI does not pass on what is billed. This is the time from the first to the last execution
        in the result, if IBM states it, else the time for which the task was seen running.

        Args:
            partial: Whether to return the time so far if the task has not ended.
        """
        if not (partial or self.in_final_state()):
            return 0.0
        with suppress(Exception):  # no result, or no executions in it
            return float(self.result(0).metadata["execution"]["execution_spans"].duration)
        if self._running_since is None:
            return 0.0
        return (self._ended or time.time()) - self._running_since

    @property
    def usage_estimation(self) -> dict[str, Any]:
        """An estimate of the use of the QPU, which QRMI does not pass on: always `None`."""
        return {"quantum_seconds": None}

    def properties(self, refresh: bool = False) -> Any:
        """Return the QPU's properties, its calibration among them; `None` if not available.

        Args:
            refresh: Whether to ask the vendor again, even if they are in the cache.
        """
        with job_errors():
            return backend_properties(self._lease.target(refresh=refresh))

    def backend(self, timeout: float | None = None) -> BackendV2:  # noqa: ARG002 - as RuntimeJobV2
        """Return the QPU as a backend, whose target circuits can be transpiled for.

        Args:
            timeout: Ignored.
        """
        with job_errors():
            return make_backend(self._lease)

    @property
    def primitive_id(self) -> str:
        """The primitive: `sampler` or `estimator`."""
        return str(self._content["program_id"])

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The primitive's parameters, as they were sent."""
        parameters: Mapping[str, Any] = self._content["parameters"]
        return parameters

    @property
    def session_id(self) -> str | None:
        """The id of the vendor's session; `None` if the QPU's type has no sessions."""
        known = registered_type(self._lease.type)
        has_sessions = known is not None and known.session_setting is not None
        return self._lease.held.qpu.token if has_sessions else None

    @property
    def tags(self) -> list[str]:
        """The task's tags: none, because QRMI sends none."""
        return []

    @property
    def private(self) -> bool:
        """Whether the task is private: QRMI submits none as such."""
        return False

    @property
    def image(self) -> str:
        """The image that runs the primitive: the vendor's default."""
        return ""

    @property
    def instance(self) -> str | None:
        """The CRN of the service's instance; `None` if the QPU's settings have none."""
        settings = self._lease.held.qpu.environment
        return next((settings[key] for key in settings if key.endswith("SERVICE_CRN")), None)

    def _submitted(self) -> datetime:
        with suppress(QPUError, TimeoutError, ValueError):
            return datetime.fromisoformat(self._future.result(0).submitted)
        return self._created

    def _record_state(self, _task_id: str, state: object) -> None:
        self._last_state = str(state)
        if self._last_state == "Running" and self._running_since is None:
            self._running_since = time.time()

    def _record_end(self, _future: object) -> None:
        self._ended = time.time()


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
