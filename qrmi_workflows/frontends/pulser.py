"""Pulser's remote backend under a lease: every task journaled, as many at once as there are lanes.

What Pulser calls a batch is one submission here, and each of its jobs one task.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, QPUError, TaskCancelledError
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.pasqal import device_specs

if TYPE_CHECKING:
    import pulser
    from pulser.backend import BackendConfig
    from pulser.backend.remote import (
        BatchStatus,
        JobStatus,
        RemoteBackend,
        RemoteConnection,
        RemoteResults,
    )
    from pulser.backend.results import Results

    from qrmi_workflows.lease.lease import Lease
    from qrmi_workflows.payloads import Payload
    from qrmi_workflows.results import QuantumResult

__all__ = ["make_backend", "make_connection"]


def make_connection(lease: Lease) -> RemoteConnection:
    """Return Pulser's connection to a lease's QPU.

    Raises:
        ConfigError: Pulser is not installed.
    """
    with needs_extra("pasqal"):
        return _connection_class()(lease)


def make_backend(
    lease: Lease, sequence: pulser.Sequence, config: BackendConfig | None = None
) -> RemoteBackend:
    """Return Pulser's backend that runs a sequence on a lease's QPU.

    Args:
        lease: Where the tasks run.
        sequence: For a device that the QPU offers (`pulser_connection().fetch_available_devices()`)
        config: As Pulser's `QPUBackend` takes it (`default_num_shots`).

    Returns:
        A `QPUBackend`; for a device that is virtual a `RemoteBackend`.

    Raises:
        PayloadError: The sequence is for another device.
        ConfigError: Pulser is not installed.
    """
    connection = make_connection(lease)
    from pulser import QPUBackend
    from pulser.backend.remote import RemoteBackend
    from pulser.devices import Device

    names = [device.name for device in connection.fetch_available_devices().values()]
    if names and sequence.device.name not in names:
        raise PayloadError(
            f"the sequence is for the device {sequence.device.name!r}; allowed on QPU "
            f"{lease.qpu!r}: {', '.join(names)}. Build it for one of those: "
            "`lease.pulser_connection().fetch_available_devices()`."
        )
    kind = QPUBackend if isinstance(sequence.device, Device) else RemoteBackend
    backend: RemoteBackend = kind(sequence, connection, config=config)
    return backend


@dataclass(slots=True, kw_only=True)
class _Job:
    """One of a batch's jobs: the task's result to come, and what was run."""

    sequence: pulser.Sequence
    future: Future[QuantumResult]
    state: str = ""

    def see(self, _task_id: str, state: object) -> None:
        self.state = str(state)

    def status(self) -> JobStatus:
        from pulser.backend.remote import JobStatus

        if not self.future.done():
            return JobStatus.RUNNING if self.state == "Running" else JobStatus.PENDING
        error = None if self.future.cancelled() else self.future.exception()
        if self.future.cancelled() or isinstance(error, TaskCancelledError):
            return JobStatus.CANCELED
        return JobStatus.ERROR if error else JobStatus.DONE

    def results(self) -> Results:
        return self.future.result().to_pulser_results(self.sequence)


class _Connection:
    """Pulser's connection over `Lease.submit`."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._batches: dict[str, dict[str, _Job]] = {}

    def supports_open_batch(self) -> bool:
        """Return that jobs cannot be added to a batch."""
        return False

    def fetch_available_devices(self) -> dict[str, pulser.devices.Device]:
        """Return the devices that the QPU offers, by their names at the vendor."""
        from pulser.abstract_repr import deserialize_device

        specs = device_specs(self._lease.target())
        return {name: deserialize_device(text) for name, text in specs.items()}

    def submit(
        self,
        sequence: pulser.Sequence,
        wait: bool = False,
        open: bool = False,  # noqa: A002 - Pulser's own word
        batch_id: str | None = None,
        **kwargs: Any,
    ) -> RemoteResults:
        """Submit one task for each of `job_params`.

        Raises:
            PayloadError: A job is malformed, or cannot run on the QPU; then none is submitted.
        """
        from pulser.backend.remote import RemoteResults

        if open or batch_id:
            raise NotImplementedError("QRMI has no open batches. Submit all jobs at once.")
        measured = self._add_measurement_to_sequence(sequence)  # type: ignore[attr-defined]
        with suppress(QPUError):  # without it the vendor alone says what it refuses
            self._lease.target()
        built = [_build(measured, params) for params in _job_params(kwargs.get("job_params"))]
        checked = [(one, self._lease.check(content)) for one, content in built]
        batch = str(uuid.uuid4())
        self._batches[batch] = {
            f"{batch}/{index}": self._start(one, payload)
            for index, (one, payload) in enumerate(checked)
        }
        if wait:
            _await(self._batches[batch].values())
        return RemoteResults(batch, self)

    def cancel(self, batch_id: str) -> None:
        """Cancel a batch's jobs, at the vendor too."""
        for job in self._jobs(batch_id).values():
            job.future.cancel()

    def _start(self, sequence: pulser.Sequence, payload: Payload) -> _Job:
        job = _Job(sequence=sequence, future=Future())
        job.future = self._lease.submit(payload, on_state=job.see)
        return job

    def _jobs(self, batch_id: str) -> dict[str, _Job]:
        if batch_id not in self._batches:
            raise PayloadError(
                f"no batch {batch_id!r} in this process; allowed: "
                f"{', '.join(self._batches) or 'none yet'}. Run the step again to find its tasks."
            )
        return self._batches[batch_id]

    def _get_job_ids(self, batch_id: str) -> list[str]:
        return list(self._jobs(batch_id))

    def _fetch_result(self, batch_id: str, job_ids: list[str] | None) -> Sequence[Results]:
        from pulser.backend.remote import RemoteResultsError

        jobs = self._jobs(batch_id)
        wanted = list(jobs) if job_ids is None else job_ids
        if waiting := [job_id for job_id in wanted if not jobs[job_id].future.done()]:
            raise RemoteResultsError(f"no results of jobs {', '.join(waiting)} yet. Wait for them.")
        try:
            return tuple(jobs[job_id].results() for job_id in wanted)
        except (QPUError, CancelledError) as error:
            raise RemoteResultsError(str(error) or "a job was cancelled") from error

    def _query_job_progress(self, batch_id: str) -> Mapping[str, tuple[JobStatus, Results | None]]:
        from pulser.backend.remote import JobStatus

        progress = {}
        for job_id, job in self._jobs(batch_id).items():
            status = job.status()
            progress[job_id] = (status, job.results() if status is JobStatus.DONE else None)
        return progress

    def _get_batch_status(self, batch_id: str) -> BatchStatus:
        from pulser.backend.remote import BatchStatus, JobStatus

        statuses = {job.status() for job in self._jobs(batch_id).values()}
        if len(statuses) == 1:
            return BatchStatus[statuses.pop().name]
        final = {JobStatus.DONE, JobStatus.CANCELED, JobStatus.ERROR}
        return BatchStatus.DONE if statuses <= final else BatchStatus.RUNNING


# Pulser is imported when a connection is first asked for, so its base joins the class here.
@cache
def _connection_class() -> Any:
    from pulser.backend.remote import RemoteConnection

    return type(
        "LeaseConnection", (_Connection, RemoteConnection), {"__doc__": _Connection.__doc__}
    )


def _job_params(params: Any) -> list[Mapping[str, Any]]:
    if not params or not all(isinstance(one, Mapping) and "runs" in one for one in params):
        raise PayloadError(
            f"job_params = {params!r:.80}; allowed is a list of one or more objects with `runs`. "
            "Write `run([{'runs': 100}])`."
        )
    return list(params)


def _build(
    sequence: pulser.Sequence, params: Mapping[str, Any]
) -> tuple[pulser.Sequence, dict[str, Any]]:
    if sequence.is_parametrized() or sequence.is_register_mappable():
        try:
            sequence = sequence.build(**params.get("variables", {}))
        except (TypeError, ValueError) as error:
            raise PayloadError(
                f"the sequence has unbound parameters: {error} Give their values in the job's "
                "`variables`."
            ) from error
    representation = json.loads(sequence.to_abstract_repr())
    return sequence, {"sequence": representation, "job_runs": params["runs"]}


def _await(jobs: Any) -> None:
    futures = [job.future for job in jobs]
    try:
        wait(futures)
    except BaseException:  # interrupted: what is in flight is cancelled, as `Lease.run` does
        for future in futures:
            with suppress(Exception):
                future.cancel()
        raise
