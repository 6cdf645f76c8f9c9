"""Pulser's remote backend over a lease: tasks are journaled, and run in the QPU's lanes.

A Pulser batch is one call to `submit`, and each of its jobs is one task.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, QPUError, TaskCancelledError
from qrmi_workflows.frontends.pulser_jobs import (
    default_runs,
    require_job_params,
    require_plain,
    require_same_device,
)
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.pasqal import device_specs
from qrmi_workflows.vendors.pasqal.checks import is_emulator

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
    from qrmi_workflows.tasks.future import TaskFuture

__all__ = ["make_backend", "make_connection"]


def make_connection(lease: Lease) -> RemoteConnection:
    """Return a Pulser connection to a lease's QPU.

    Raises:
        ConfigError: Pulser is not installed.
    """
    with needs_extra("pasqal"):
        return _connection_class()(lease)


def make_backend(
    lease: Lease, sequence: pulser.Sequence, config: BackendConfig | None = None
) -> RemoteBackend:
    """Return a Pulser backend that runs a sequence on a lease's QPU.

    Args:
        lease: The lease under which the tasks run.
        sequence: A sequence for one of the QPU's devices
            (`lease.pulser_connection().fetch_available_devices()`). Pasqal Cloud's emulators run
            those for any of Pulser's devices.
        config: Pulser's configuration, for example `default_num_shots`.

    Returns:
        A `QPUBackend`; for an emulator, or if the sequence's device is virtual, a `RemoteBackend`.

    Raises:
        PayloadError: The sequence is for another device.
        ConfigError: Pulser is not installed.
    """
    connection = make_connection(lease)
    from pulser import QPUBackend
    from pulser.devices import Device

    if is_emulator(lease.qpu):
        return _backend_class()(sequence, connection, config=config)
    names = [device.name for device in connection.fetch_available_devices().values()]
    if names and sequence.device.name not in names:
        raise PayloadError(
            f"the sequence is for device {sequence.device.name!r}; on QPU {lease.qpu!r}, it must "
            f"be one of: {', '.join(names)}. Build it for one of these: "
            "`lease.pulser_connection().fetch_available_devices()`."
        )
    # Pulser's `QPUBackend` refuses virtual devices, which an emulated QPU may have.
    backend_class = QPUBackend if isinstance(sequence.device, Device) else _backend_class()
    backend: RemoteBackend = backend_class(sequence, connection, config=config)
    return backend


@dataclass(slots=True, kw_only=True)
class _Job:
    """A job of a batch: the sequence that runs, and the future of its result."""

    sequence: pulser.Sequence
    future: TaskFuture = field(init=False)
    last_state: str = ""

    def record_state(self, _task_id: str, state: object) -> None:
        self.last_state = str(state)

    def status(self) -> JobStatus:
        from pulser.backend.remote import JobStatus

        if not self.future.done():
            return JobStatus.RUNNING if self.last_state == "Running" else JobStatus.PENDING
        error = None if self.future.cancelled() else self.future.exception()
        if self.future.cancelled() or isinstance(error, TaskCancelledError):
            return JobStatus.CANCELED
        return JobStatus.ERROR if error else JobStatus.DONE

    def results(self) -> Results:
        return self.future.result().to_pulser_results(self.sequence)


class _Connection:
    """A Pulser connection that submits its jobs with `Lease.submit`.

    The methods with an underscore are those that Pulser's `RemoteConnection` expects of its
    subclasses. They are internal to Pulser; read in pulser-core 1.9.1 (pulser/backend/remote.py).
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._batches: dict[str, dict[str, _Job]] = {}

    def supports_open_batch(self) -> bool:
        """Return `False`: jobs cannot be added to a submitted batch."""
        return False

    def fetch_available_devices(self) -> dict[str, pulser.devices.Device]:
        """Return the QPU's devices, by the vendor's names."""
        from pulser.abstract_repr import deserialize_device

        specs = device_specs(self._lease.target())
        return {name: deserialize_device(text) for name, text in specs.items()}

    def submit(
        self,
        sequence: pulser.Sequence,
        wait: bool = False,
        open: bool = False,  # noqa: A002 - the name in Pulser's signature
        batch_id: str | None = None,
        **kwargs: Any,
    ) -> RemoteResults:
        """Submit one task for each item of `job_params`.

        Args:
            sequence: The sequence, which may be parametrised.
            wait: Whether to wait for the results.
            open: Not supported.
            batch_id: Not supported.
            **kwargs: `job_params`, one for each task. From the backends of Pasqal's SDK also
                `device_type` and `backend_configuration`, whose number of shots is the default.

        Raises:
            PayloadError: A job is malformed, or cannot run on the QPU. No job is submitted.
        """
        from pulser.backend.remote import RemoteResults

        if open or batch_id:
            raise NotImplementedError(
                "open batches are not supported. Submit all jobs in one call to `run`."
            )
        # A method of `RemoteConnection`, also internal to Pulser.
        measured = self._add_measurement_to_sequence(sequence)  # type: ignore[attr-defined]
        # `check` compares sequences with the target if the lease has it. Without a target, only the
        # vendor checks them.
        with suppress(QPUError):
            self._lease.target()
        config = kwargs.get("backend_configuration")
        require_same_device(kwargs.get("device_type"), self._lease.qpu)
        require_plain(config)
        job_params = require_job_params(kwargs.get("job_params"), default_runs(config))
        sequences = [_build_sequence(measured, params) for params in job_params]
        payloads = [
            self._lease.check(_to_content(built, params["runs"]))
            for built, params in zip(sequences, job_params, strict=True)
        ]
        new_batch_id = str(uuid.uuid4())
        jobs = [self._start(*job) for job in zip(sequences, payloads, strict=True)]
        # As with QRMI's own connection, a batch and its only job have the same id.
        self._batches[new_batch_id] = {
            f"{new_batch_id}/{index}" if index else new_batch_id: job
            for index, job in enumerate(jobs)
        }
        if wait:
            _wait_or_cancel(jobs)
        return RemoteResults(new_batch_id, self)

    def cancel(self, batch_id: str) -> None:
        """Cancel the jobs of a batch, also at the vendor."""
        for job in self._jobs(batch_id).values():
            job.future.cancel()

    def cancel_batch_jobs(self, batch_id: str | None = None) -> None:
        """Cancel the jobs of a batch, by default the last one, as QRMI's connection does."""
        self.cancel(batch_id or self._last_batch())

    def get_batch_logs(self, batch_id: str | None = None) -> Sequence[str]:
        """Return the vendor's logs of the jobs of a batch, as QRMI's connection does.

        Args:
            batch_id: The batch; by default the last one.
        """
        logs = []
        for job in self._jobs(batch_id or self._last_batch()).values():
            with suppress(QPUError):
                if job.future.task_id is not None:
                    logs.append(self._lease.resource.task_logs(job.future.task_id))
        return tuple(logs)

    def _last_batch(self) -> str:
        return next(reversed(self._batches), "")

    def _start(self, sequence: pulser.Sequence, payload: Payload) -> _Job:
        # States may be reported before `submit` returns, so the job exists before its future.
        job = _Job(sequence=sequence)
        job.future = self._lease.submit(payload, on_state=job.record_state)
        return job

    def _jobs(self, batch_id: str) -> dict[str, _Job]:
        if batch_id not in self._batches:
            raise PayloadError(
                f"batch {batch_id!r} was not submitted by this process; must be one of: "
                f"{', '.join(self._batches) or 'none yet'}. Rerun the step to find its tasks; they "
                "are not submitted again."
            )
        return self._batches[batch_id]

    def _get_job_ids(self, batch_id: str) -> list[str]:
        return list(self._jobs(batch_id))

    def _fetch_result(self, batch_id: str, job_ids: list[str] | None) -> Sequence[Results]:
        from pulser.backend.remote import RemoteResultsError

        jobs = self._jobs(batch_id)
        selected = list(jobs) if job_ids is None else job_ids
        if pending := [job_id for job_id in selected if not jobs[job_id].future.done()]:
            raise RemoteResultsError(
                f"jobs {', '.join(pending)} have no results yet. Wait for them with "
                "`run(…, wait=True)`."
            )
        try:
            return tuple(jobs[job_id].results() for job_id in selected)
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


class _Backend:
    """A `RemoteBackend` that passes its configuration on, as those of Pasqal's SDK do."""

    _config: BackendConfig

    def run(self, job_params: Any = None, wait: bool = False) -> RemoteResults:
        """Run the sequence; without `job_params` once, with the default number of shots."""
        params = [{}] if job_params is None else job_params
        results: RemoteResults = super().run(params, wait)  # type: ignore[misc]  # RemoteBackend
        return results

    def _submit_kwargs(self) -> dict[str, Any]:
        inherited: dict[str, Any] = super()._submit_kwargs()  # type: ignore[misc]  # RemoteBackend
        return {**inherited, "backend_configuration": self._config}


# Importing this module must not import Pulser, so its base classes are added on first use.
@cache
def _connection_class() -> Any:
    from pulser.backend.remote import RemoteConnection

    return type(
        "LeaseConnection", (_Connection, RemoteConnection), {"__doc__": _Connection.__doc__}
    )


@cache
def _backend_class() -> Any:
    from pulser.backend.remote import RemoteBackend

    return type("LeaseBackend", (_Backend, RemoteBackend), {"__doc__": _Backend.__doc__})


def _build_sequence(sequence: pulser.Sequence, params: Mapping[str, Any]) -> pulser.Sequence:
    if not (sequence.is_parametrized() or sequence.is_register_mappable()):
        return sequence
    try:
        return sequence.build(**(params.get("variables") or {}))
    except (TypeError, ValueError) as error:
        raise PayloadError(
            f"the sequence has unbound parameters: {str(error).rstrip('.')}. Give their values in "
            "the `variables` of each job."
        ) from error


def _to_content(sequence: pulser.Sequence, runs: int) -> dict[str, Any]:
    return {"sequence": json.loads(sequence.to_abstract_repr()), "job_runs": runs}


def _wait_or_cancel(jobs: list[_Job]) -> None:
    """Wait until all jobs have ended. If that is interrupted, cancel them, as `Lease.run` does."""
    futures = [job.future for job in jobs]
    try:
        wait(futures)
    except BaseException:
        for future in futures:
            with suppress(Exception):  # the interruption is what must reach the caller
                future.cancel()
        raise
