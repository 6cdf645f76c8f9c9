"""Root's leases on behalf of jobs: acquire them in time, and release them whatever happened.

QRMI's client has no timeouts for most vendors, and what a vendor grants late has to be released
nevertheless. So a process of its own acquires: the Prolog waits for it only for a limited time. It
records a lease only as long as somebody waits for it, which a file says; otherwise it releases it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrmi_workflows.client.failures import is_session_ended
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import LeaseError, QPUError
from qrmi_workflows.lease.acquire import acquire
from qrmi_workflows.lease.reap import environment_of, open_resource
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.state.files import append_line, write_atomically
from qrmi_workflows.state.locks import hold_lock
from qrmi_workflows.tasks.usage import TaskUsage
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import JobTimes

__all__ = [
    "ACQUIRE_SECONDS",
    "RELEASE_SECONDS",
    "Expected",
    "ReleasingHandles",
    "acquire_all",
    "copy_usage",
    "leases_of",
    "release",
]

logger = logging.getLogger(__name__)

ACQUIRE_SECONDS = 30.0
"""How long a Prolog waits for the vendors."""

RELEASE_SECONDS = 15.0
"""How long a release may take, in the Prolog and in the Epilog."""

_CLOCKS_SECONDS = 60.0  # how much the clocks of a job's nodes may differ
_LONGEST_ID = 256
_MOST_SHOTS = 10**9  # of one task
_LATE_SECONDS = 900.0  # how long what a vendor grants late is waited for, to release it


class Expected:
    """Says that a job's Prolog, or its job, waits for the leases that are being acquired.

    Args:
        state: The folder of root's files.
        job_id: The job's id.
        user: The job's user.
        account: The account that the job is charged to, if any.
    """

    def __init__(
        self, state: Path, job_id: str, user: str = "", account: str | None = None
    ) -> None:
        self.job_id = job_id
        self._user, self._account = user, account
        self._file = state / "leases" / "acquiring" / job_id
        self._lock = state / "leases" / "acquiring" / f"{job_id}.lock"
        self._run = uuid.uuid4().hex

    def begin(self) -> None:
        """Say so from now on.

        Raises:
            OSError: It could not be written.
        """
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._file, self._run, mode=0o600)

    def end(self) -> bool:
        """Do not wait any longer: what is granted after this call is released at once.

        Returns:
            Whether somebody was still waiting.
        """
        if was_waiting := self._file.exists():
            with hold_lock(self._lock):
                self._file.unlink(missing_ok=True)
                self._lock.unlink(missing_ok=True)
        return was_waiting

    def record(self, held: JobQPU, acquire_seconds: float, config: Path) -> OpenLease | None:
        """Record a lease; `None` if nobody waits for it, or if it could not be recorded."""
        with hold_lock(self._lock):
            try:
                is_expected = self._file.read_text(encoding="ascii") == self._run
            except OSError:
                is_expected = False
            if not is_expected:
                self._lock.unlink(missing_ok=True)
                return None
            known = registered_type(held.type)
            opened = OpenLease.create(
                qpu=held.name,
                type=held.type,
                step="",
                acquire=acquire_seconds,
                config=config,
                token=held.token or "",
                mode=None if known is None else known.session_mode(held.environment),
                user=self._user,
                account=self._account,
            )
        return opened if opened.path.exists() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What has become of one QPU.

    Attributes:
        qpu: Its name.
        lease: The id of its lease; empty if it was not acquired.
        reason: Why it was not.
    """

    qpu: str
    lease: str = ""
    reason: str = ""


def acquire_all(
    qpus: Iterable[JobQPU],
    expected: Expected,
    *,
    config: Path,
    seconds: float = ACQUIRE_SECONDS,
) -> dict[str, OpenLease]:
    """Acquire QPUs for the job of this Prolog.

    Args:
        qpus: The QPUs.
        expected: Begun for this job; ended if the QPUs are not acquired.
        config: The `qrmi_config.json` that defines them.
        seconds: How long to wait for the vendors.

    Returns:
        Their leases, by name.

    Raises:
        LeaseError: One of them was not acquired in time. Those that were are still recorded.
    """
    wanted = {qpu.name: qpu for qpu in qpus}
    limit = time.monotonic() + seconds
    outcomes = {each.qpu: each for each in _outcomes(wanted, expected, config, limit)}
    is_late = time.monotonic() >= limit
    for name in wanted:
        outcome = outcomes.get(name)
        if outcome is not None:
            reason = outcome.reason
        elif is_late:
            reason = f"the vendor did not answer within {seconds:g} s."
        else:
            reason = "the process that asked for it was killed."
            # QRMI lists no sessions, so nobody can find one whose token was lost.
            logger.warning(
                "the process that acquires QPU %s for job %s was killed. A session that the vendor "
                "has opened for it may stay open until its time to live ends.",
                name,
                expected.job_id,
            )
        if outcome is None or not outcome.lease:
            expected.end()
            raise LeaseError(f"QPU {name!r} could not be acquired for this job: {reason}", name)
    opened = {each.lease: each for each in open_leases()}
    return {name: opened[outcomes[name].lease] for name in wanted}


def _outcomes(
    wanted: Mapping[str, JobQPU], expected: Expected, config: Path, limit: float
) -> Iterator[_Outcome]:
    """Yield the outcomes that a process of its own reports before a time limit."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.close(reader)
            _detach(writer)
            _work(wanted, expected, config, writer, limit)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        received = b""
        while (left := limit - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            if not (data := pipe.read(65536)):
                return
            *lines, received = (received + data).split(b"\n")
            yield from (_Outcome(**json.loads(line)) for line in lines)


def _detach(writer: int) -> None:
    """Leave the Prolog's session and files: Slurm waits until its output is closed."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.set_inheritable(writer, False)


def _work(
    wanted: Mapping[str, JobQPU], expected: Expected, config: Path, writer: int, limit: float
) -> None:
    stop = threading.Event()
    timer = threading.Timer(max(0.0, limit - time.monotonic()), stop.set)
    timer.daemon = True
    timer.start()

    def report(qpu: JobQPU) -> None:
        outcome = _acquire_one(qpu, expected, config, stop)
        with suppress(OSError):  # the Prolog has stopped waiting, or was killed
            os.write(writer, json.dumps(asdict(outcome)).encode() + b"\n")

    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        list(pool.map(report, wanted.values()))


def _acquire_one(qpu: JobQPU, expected: Expected, config: Path, stop: threading.Event) -> _Outcome:
    started = time.monotonic()
    try:
        resource = QRMIResource(
            qpu.name, qpu.type, qpu.environment, deadlines={"acquire": _LATE_SECONDS}
        )
        token = acquire(qpu, resource, stop)
        held = replace(qpu, token=token)
        opened = expected.record(held, time.monotonic() - started, config)
        if opened is None:
            with suppress(QPUError):
                resource.release(token)
            return _Outcome(qpu=qpu.name, reason="it was granted too late, and released.")
    except (QPUError, OSError) as error:
        reason = str(error).removeprefix(f"QPU {qpu.name!r} could not be acquired: ")
        return _Outcome(qpu=qpu.name, reason=reason)
    return _Outcome(qpu=qpu.name, lease=opened.lease)


def leases_of(job_id: str) -> list[OpenLease]:
    """Return the open leases of a job, of all its runs."""
    return [each for each in open_leases() if each.owner.job == job_id]


class ReleasingHandles:
    """Handles that release many leases, where QRMI can do that: creating one takes milliseconds.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[str, str, str | None], QRMIResource] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open(self, opened: OpenLease, environment: Mapping[str, str]) -> Iterator[QRMIResource]:
        """Yield a handle to a lease's QPU."""
        known = registered_type(opened.type)
        if known is None or not known.release_takes_token:
            with open_resource(opened, environment) as resource:
                yield resource
            return
        key = (opened.qpu, opened.type, opened.config)
        with self._lock:
            if key not in self._shared:
                self._shared[key] = QRMIResource(opened.qpu, opened.type, environment)
        yield self._shared[key]

    def close(self) -> None:
        """Close their connections."""
        for resource in self._shared.values():
            resource.close()


def release(
    opened: OpenLease,
    *,
    folder: JobFolder | None = None,
    uid: int | None = None,
    times: Callable[[], JobTimes | None] | None = None,
    handles: ReleasingHandles | None = None,
    reaped: bool = False,
    seconds: float = RELEASE_SECONDS,
) -> LeaseRecord | None:
    """Release a lease and write its record.

    Args:
        opened: The lease.
        folder: The job's folder, if what the job's programs recorded is to be in the record.
        uid: The job's user, who owns that.
        times: Returns when the job was submitted and started; may wait for the scheduler.
        handles: Those with which other leases are released, too.
        reaped: Whether it is the reaper that releases it.
        seconds: How long the vendor may take.

    Returns:
        The record; `None` if another process releases the lease.

    Raises:
        QPUError: The vendor did not release it.
    """
    with hold_lock(opened.path.with_suffix(".releasing")):
        try:
            if not opened.path.exists():
                return None
            try:
                open_handle = open_resource if handles is None else handles.open
                with open_handle(opened, environment_of(opened)) as resource:
                    resource.release(opened.token, deadline=seconds)
            except QPUError as error:
                if not is_session_ended(error):
                    raise
            if folder is not None and uid is not None:
                copy_usage(opened, folder, uid)
            return opened.close(times=None if times is None else times(), reaped=reaped)
        finally:
            opened.path.with_suffix(".releasing").unlink(missing_ok=True)


def copy_usage(opened: OpenLease, folder: JobFolder, uid: int) -> None:
    """Take over what the job's programs recorded, as far as it can be true.

    Anything else would make the lease's record one that does not count.
    """
    limits = opened.acquired - _CLOCKS_SECONDS, time.time() + _CLOCKS_SECONDS
    lines = []
    for line in folder.read_usage(opened.qpu, uid):
        with suppress(TypeError):
            if "reported" in line:
                possible = _is_possible_report(line, limits)
            else:
                possible = _is_possible(TaskUsage(**line), limits)
            if possible:
                lines.append(json.dumps(line))
    if lines:
        with suppress(OSError):
            append_line(opened.usage_path, "\n".join(lines))  # at once: there may be 100,000


def _is_possible_report(line: dict[str, Any], limits: tuple[float, float]) -> bool:
    seconds: Any = line.get("seconds")
    is_number = type(seconds) in (int, float) and 0 <= seconds <= limits[1] - limits[0]
    return is_number and _is_text(line["reported"])


def _is_possible(task: TaskUsage, limits: tuple[float, float]) -> bool:
    texts: list[object] = [task.qpu, task.task_id, task.state]
    times: list[Any] = [task.started, task.ended, *([] if task.running is None else [task.running])]
    is_count = task.shots is None or (type(task.shots) is int and 0 <= task.shots <= _MOST_SHOTS)
    return (
        is_count
        and all(_is_text(each) for each in texts)
        and all(type(each) in (int, float) and limits[0] <= each <= limits[1] for each in times)
    )


def _is_text(value: object) -> bool:
    is_short = isinstance(value, str) and len(value) <= _LONGEST_ID
    return is_short and str(value).isascii() and str(value).isprintable()
