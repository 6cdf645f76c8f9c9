"""The QPU as QRMI gives it: the paper's interface, with deadlines and classified errors.

The only importer of `qrmi`. What its client lacks is added here: every call has a deadline, which
needs a thread to each handle (`handles`), and what fails raises an error that tells what may be
tried again (`failures`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Any, NoReturn, Protocol, runtime_checkable

from qrmi_workflows.environment import TIMEOUT, TOKEN
from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    QPUError,
    ResourceError,
    TaskUnknownError,
)
from qrmi_workflows.failures import classify
from qrmi_workflows.handles import Handle, Handles
from qrmi_workflows.secrecy import conceal, secrets_of
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
_FRESH_SECONDS = 1.0
_DISCREET = "quantum_system_api=info"


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
        make = partial(_make_handle, name, type, self._environment)
        self._handles = Handles(make, f"qrmi-{name}")
        self._contact = float("-inf")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.type!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, alone or within a lease."""
        raise TypeError(
            f"the handle of QPU {self.name!r} holds credentials and stays in its process; from an "
            "app, return its results."
        )

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
        return self._conceal(str(self._call("task_logs", task_id)))

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
        self._handles.replace()

    def close(self) -> None:
        """Let the idle threads and their connections go; the next call makes new ones."""
        self._handles.close()

    def _call(
        self, method: str, *args: Any, on_late: Callable[[Future[Any]], None] | None = None
    ) -> Any:
        handle = self._handles.take()
        used_before = handle.used
        try:
            return self._call_with(handle, method, args, on_late)
        except AuthenticationError:
            if not used_before:
                raise
        # An access token that the vendor has forgotten is kept by the handle until it expires: a
        # new handle asks for another. A call that was refused so has done nothing.
        self.close()
        return self._call_with(self._handles.take(), method, args, on_late)

    def _call_with(
        self,
        handle: Handle,
        method: str,
        args: tuple[Any, ...],
        on_late: Callable[[Future[Any]], None] | None,
    ) -> Any:
        future = handle.call(method, args)
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
            if sound and future.done():
                self._handles.put_back(handle)
            else:
                handle.dismiss()

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
            # In place: tracebacks show the cause, too.
            error.args = (self._conceal(str(error), *(args if method == "release" else ())),)
            raise classify(error, self.name, method, args) from error

    def _conceal(self, text: str, *tokens: str) -> str:
        return conceal(text, {*secrets_of(self._environment), *tokens})


def _make_handle(name: str, type_: str, environment: Mapping[str, str]) -> Any:
    qrmi = _import_qrmi()
    resource_type = getattr(qrmi.ResourceType, _TYPES[type_])
    return qrmi.QuantumResource.from_config(name, resource_type, environment)


def _import_qrmi() -> Any:
    # Every handle starts a thread for each core unless it is told otherwise; ours make one call
    # at a time.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    # Below this level the client for IBM's systems logs URLs that hold credentials.
    if (logged := os.environ.get("RUST_LOG")) and _DISCREET not in logged:
        os.environ["RUST_LOG"] = f"{_DISCREET},{logged}"
    import qrmi

    return qrmi
