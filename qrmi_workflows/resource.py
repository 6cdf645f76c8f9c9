"""The QPU as QRMI gives it: the paper's interface, with deadlines and classified errors.

The only importer of `qrmi`. What its client lacks is added here: most vendors' calls have no
timeout, one handle serves one thread, a handle does not survive a fork, and errors tell what is
transient only in their text. Each call therefore runs in a thread that owns a handle of its own;
when the vendor is silent past the deadline, thread and handle are abandoned and replaced.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from qrmi_workflows.environment import TIMEOUT, TOKEN
from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskUnknownError,
)
from qrmi_workflows.vendors import VendorPayload

__all__ = ["DEADLINES", "QRMIResource", "QuantumResource", "TaskState"]

DEADLINES: Mapping[str, float] = {
    "acquire": 60.0,
    "release": 15.0,
    "task_start": 60.0,
    "task_stop": 15.0,
    "task_result": 120.0,
    "target": 60.0,
}
"""Seconds that a call may take; 30 for those not named. A release fits into Slurm's KillWait."""

_DEFAULT_DEADLINE = 30.0
_LATE_SECONDS = 5.0
_TYPES = {
    "alice-bob-felis": "AliceBobFelis",
    "ibm-quantum-compute-service": "IBMQuantumComputeService",
    "ibm-quantum-system": "IBMQuantumSystem",
    "iqm-server": "IQMServer",
    "oqtopus": "OQTOPUS",
    "pasqal-cloud": "PasqalCloud",
    "pasqal-local": "PasqalLocal",
    "qiskit-runtime-service": "IBMQiskitRuntimeService",
}
# This API wants a limit for every task; without a job's own it is a day.
_DEFAULTS = {"ibm-quantum-system": {TIMEOUT: "86400"}}
_STATUS = re.compile(r"(?:status(?: code)?|body|http)[ :=(]*([1-5]\d\d)\b", re.IGNORECASE)
_TRANSIENT = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
# A gateway may answer 5xx for a server that has carried the request out; 4xx comes before that.
_NOT_ACTED_ON = frozenset(range(400, 500)) - {408}
_REFUSALS = frozenset({"UnsupportedPayloadError", "UnsupportedFunctionError"})
_STATUS_OF_CLASS = {
    "InvalidInputError": 400,
    "AuthenticationFailedError": 401,
    "ResourceNotFoundError": 404,
    "TaskNotFoundError": 404,
}
_CUT_OFF = re.compile(
    r"error sending request|error decoding|serde|EOF while parsing", re.IGNORECASE
)
_SESSION = re.compile(r"\bsession\b.*\b(closed|expired|ended|not found)\b", re.IGNORECASE)
_FRESH_SECONDS = 1.0


class TaskState(StrEnum):
    """What a vendor says of a task."""

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNKNOWN = "Unknown"

    @property
    def final(self) -> bool:
        """Whether it never changes again."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)

    @classmethod
    def of(cls, status: object) -> TaskState:
        """Translate QRMI's `TaskStatus`; what is not known is UNKNOWN."""
        name = str(status).rpartition(".")[2]
        return cls._value2member_map_.get(name, cls.UNKNOWN)  # type: ignore[return-value]


@runtime_checkable
class QuantumResource(Protocol):
    """QRMI's interface to one QPU (Table I of its paper, and its newer `status`, `task_logs`).

    The types are QRMI's own, so that what is written for `qrmi.QuantumResource`
    (`qrmi.primitives`, `qrmi.pulser`) takes this too. Every method raises `ResourceError`.
    """

    def resource_id(self) -> str:
        """Return the QPU's name."""

    def resource_type(self) -> Any:
        """Return QRMI's `ResourceType`."""

    def is_accessible(self) -> bool:
        """Return whether the QPU takes tasks."""

    def acquire(self) -> str:
        """Acquire the QPU and return the acquisition token."""

    def release(self, token: str) -> None:
        """Release what `acquire` returned."""

    def task_start(self, payload: Any) -> str:
        """Start a task and return its id."""

    def task_stop(self, task_id: str) -> None:
        """Cancel a task."""

    def task_status(self, task_id: str) -> Any:
        """Return QRMI's `TaskStatus`; `TaskState.of` translates it."""

    def task_result(self, task_id: str) -> Any:
        """Return QRMI's `TaskResult`; its `value` is the vendor's text."""

    def task_logs(self, task_id: str) -> str:
        """Return what the vendor logged for a task."""

    def target(self) -> Any:
        """Return QRMI's `Target`; its `value` is JSON."""

    def metadata(self) -> dict[str, str]:
        """Return what the vendor says of the QPU."""

    def status(self) -> Any:
        """Return QRMI's `ResourceStatus`."""


class QRMIResource:
    """A `QuantumResource` over the real QRMI client; safe to use from any thread and after a fork.

    Args:
        name: The QPU's name.
        type: QRMI's resource type (`pasqal-cloud`).
        environment: QRMI's settings, without the `NAME_` prefix.
        token: The acquisition token that tasks run under, when one is held already.
        deadlines: Seconds by method, over `DEADLINES`.

    Raises:
        ConfigError: QRMI has no such type.
    """

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002 - QRMI's own word
        environment: Mapping[str, str],
        *,
        token: str | None = None,
        deadlines: Mapping[str, float] | None = None,
    ) -> None:
        self._idle: list[_Caller] = []
        if type not in _TYPES:
            raise ConfigError(
                f"QPU {name!r} has the unknown type {type!r}; allowed: {', '.join(_TYPES)}. "
                "Correct `type` in qrmi_config.json."
            )
        self.name = name
        self.type = type
        defaults = _DEFAULTS.get(type, {})
        self._environment = {**defaults, **environment} | ({TOKEN: token} if token else {})
        self._deadlines = {**DEADLINES, **(deadlines or {})}
        self._pid = os.getpid()
        self._contact = float("-inf")
        self._generation = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.type!r})"

    def resource_id(self) -> str:
        """Return the QPU's name."""
        return self.name

    def resource_type(self) -> Any:
        """Return QRMI's `ResourceType`."""
        return self._call("resource_type")

    def is_accessible(self) -> bool:
        """Return whether the QPU takes tasks."""
        return bool(self._call("is_accessible"))

    def acquire(self) -> str:
        """Acquire the QPU and return the acquisition token.

        What the vendor grants after the deadline is released at once; when this is interrupted it
        waits a few seconds for the grant, to give it back.
        """
        return str(self._call("acquire", on_late=self._give_back))

    def release(self, token: str) -> None:
        """Release what `acquire` returned."""
        self._call("release", token)

    def task_start(self, payload: Any) -> str:
        """Start a task and return its id.

        Args:
            payload: Ours (`VendorPayload`) or QRMI's own `Payload`.

        A vendor who has not answered for a second is asked for its state first: when that fails,
        certainly nothing was submitted, which a failed submission alone could not tell.
        """
        self._assure_contact()
        if isinstance(payload, VendorPayload):
            payload = getattr(_import_qrmi().Payload, payload.kind)(**payload.fields)
        return str(self._call("task_start", payload))

    def task_stop(self, task_id: str) -> None:
        """Cancel a task."""
        self._call("task_stop", task_id)

    def task_status(self, task_id: str) -> Any:
        """Return QRMI's `TaskStatus`."""
        return self._call("task_status", task_id)

    def task_result(self, task_id: str) -> Any:
        """Return QRMI's `TaskResult`."""
        return self._call("task_result", task_id)

    def task_logs(self, task_id: str) -> str:
        """Return what the vendor logged for a task."""
        return str(self._call("task_logs", task_id))

    def target(self) -> Any:
        """Return QRMI's `Target`."""
        return self._call("target")

    def metadata(self) -> dict[str, str]:
        """Return what the vendor says of the QPU."""
        return dict(self._call("metadata"))

    def status(self) -> Any:
        """Return QRMI's `ResourceStatus`."""
        return self._call("status")

    def use_token(self, token: str) -> None:
        """Run tasks under another acquisition token from now on."""
        self._environment[TOKEN] = token
        self._generation += 1
        self.close()

    def close(self) -> None:
        """Let the idle threads and their connections go; the next call makes new ones."""
        while self._idle:
            self._idle.pop().dismiss()

    def __del__(self) -> None:
        self.close()

    def _call(
        self, method: str, *args: Any, on_late: Callable[[Future[Any]], None] | None = None
    ) -> Any:
        caller = self._take()
        used_before = caller.used
        try:
            return self._call_with(caller, method, args, on_late)
        except AuthenticationError:
            if not used_before:
                raise
        # An access token that the vendor has forgotten is kept by the handle until it expires: a
        # new handle asks for another. A call that was refused so has done nothing.
        self.close()
        return self._call_with(self._take(), method, args, on_late)

    def _call_with(
        self,
        caller: _Caller,
        method: str,
        args: tuple[Any, ...],
        on_late: Callable[[Future[Any]], None] | None,
    ) -> Any:
        future = caller.call(method, args)
        sound = False
        try:
            value = self._wait(future, method, args)
        except AuthenticationError:
            raise
        except (ResourceError, ConfigError, TaskUnknownError):
            sound = True
            if on_late and not future.done():
                future.add_done_callback(on_late)
            raise
        except BaseException:  # interrupted, and the process is likely about to end
            if on_late:
                wait([future], timeout=_LATE_SECONDS)
                on_late(future)
            raise
        else:
            sound = True
            self._contact = time.monotonic()
            return value
        finally:
            if sound and future.done() and caller.generation == self._generation:
                self._idle.append(caller)
            else:
                caller.dismiss()

    def _assure_contact(self) -> None:
        if time.monotonic() - self._contact < _FRESH_SECONDS:
            return
        try:
            self.status()
        except ResourceError as error:
            error.refused = True
            raise

    def _give_back(self, acquired: Future[Any]) -> None:
        if acquired.done() and acquired.exception() is None:
            with suppress(QPUError):
                self.release(str(acquired.result()))

    def _wait(self, future: Future[Any], method: str, args: tuple[Any, ...]) -> Any:
        deadline = self._deadlines.get(method, _DEFAULT_DEADLINE)
        try:
            return future.result(timeout=deadline)
        except TimeoutError as error:
            raise DeadlineError(
                f"QPU {self.name!r} did not answer {method} within {deadline:g} s. "
                "Look at its state with `qpu list`; try again later.",
                self.name,
                method,
                retryable=True,
            ) from error
        except Exception as error:
            raise _classify(error, self.name, method, args) from error

    def _take(self) -> _Caller:
        if self._pid != os.getpid():  # a forked child inherits handles that hang, and no threads
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return _Caller(self._make_handle, f"qrmi-{self.name}", self._generation)

    def _make_handle(self) -> Any:
        qrmi = _import_qrmi()
        type_ = getattr(qrmi.ResourceType, _TYPES[self.type])
        return qrmi.QuantumResource.from_config(self.name, type_, self._environment)


class _Caller:
    """A thread that owns one of QRMI's handles. A daemon: a silent vendor holds up no exit."""

    def __init__(self, make_handle: Callable[[], Any], name: str, generation: int) -> None:
        self.generation = generation
        self.used = False
        self._inbox: queue.SimpleQueue[tuple[Future[Any], str, tuple[Any, ...]] | None]
        self._inbox = queue.SimpleQueue()
        arguments = (self._inbox, make_handle)
        threading.Thread(target=_serve, args=arguments, name=name, daemon=True).start()

    def call(self, method: str, args: tuple[Any, ...]) -> Future[Any]:
        self.used = True
        future: Future[Any] = Future()
        self._inbox.put((future, method, args))
        return future

    def dismiss(self) -> None:
        """Let the thread end as soon as its call, if one is under way, does."""
        self._inbox.put(None)


def _serve(
    inbox: queue.SimpleQueue[tuple[Future[Any], str, tuple[Any, ...]] | None],
    make_handle: Callable[[], Any],
) -> None:
    handle: Any = None
    while (item := inbox.get()) is not None:
        future, method, args = item
        try:
            if handle is None:
                handle = make_handle()
            future.set_result(getattr(handle, method)(*args))
        except BaseException as error:  # all of it belongs to the caller
            future.set_exception(error)
        del item, future, args  # or this frame keeps the last result alive


def _import_qrmi() -> Any:
    # Every handle starts a thread for each core unless it is told otherwise; ours make one call
    # at a time.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    import qrmi

    return qrmi


def _classify(
    error: Exception, qpu: str, method: str, args: tuple[Any, ...]
) -> ResourceError | ConfigError | TaskUnknownError:
    """Turn one of QRMI's errors into ours; its class and its text are all that tells them apart."""
    name, text = type(error).__name__, str(error)
    match = _STATUS.search(text)
    status = int(match[1]) if match else _STATUS_OF_CLASS.get(name)
    said = f"QPU {qpu!r}: {method} failed: {text.rstrip()}"
    if name in ("ConfigError", "EnvVarNotSetError"):
        return ConfigError(f"{said}. Correct its `environment` in qrmi_config.json.")
    if status == 404 and method.startswith("task_") and method != "task_start":
        return TaskUnknownError(f"{said}. The vendor does not know it.", qpu, str(args[0]))
    if status == 401:
        remedy = "Renew the QPU's credentials in qrmi_config.json."
        return AuthenticationError(f"{said}. {remedy}", qpu, method, 401, refused=True)
    if method == "task_start" and status in (400, 404) and _SESSION.search(text):
        return SessionEndedError(said, qpu, method, status, retryable=True, refused=True)
    transient = status in _TRANSIENT or (status is None and bool(_CUT_OFF.search(text)))
    refused = name in _REFUSALS or status in _NOT_ACTED_ON
    return ResourceError(said, qpu, method, status, transient, refused)
