"""A QPU behind QRMI's client, with deadlines and classified errors.

This adds two things that the client lacks: a deadline
for every call, which requires a thread for each handle (`handles`), and errors that tell whether a
call may be retried (`failures`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from qrmi_workflows.client.ended_emulator import ended_emulator
from qrmi_workflows.client.failures import TRY_LATER, classify
from qrmi_workflows.client.handles import Call, Handle, HandlePool, failure_of
from qrmi_workflows.client.package import import_qrmi, to_qrmi_payload
from qrmi_workflows.client.redaction import redact, secrets_of
from qrmi_workflows.client.start_call import StartCall, Submissions
from qrmi_workflows.config.job import RESOURCE_ID, TOKEN, require_reachable
from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    QPUError,
    ResourceError,
    TaskUnknownError,
)
from qrmi_workflows.schedulers import describe_this_job
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type, registered_types

__all__ = ["DEADLINES", "QRMIResource"]

DEADLINES: Mapping[str, float] = {
    "acquire": 60.0,
    "release": 15.0,
    "task_start": 60.0,
    "task_stop": 15.0,
    "task_result": 120.0,
    "target": 60.0,
}
"""Seconds that a call may take; 30 for those not named here."""

_DEFAULT_DEADLINE = 30.0
_LATE_SECONDS = 5.0
_FRESH_SECONDS = 1.0


class QRMIResource:
    """A `QuantumResource` over QRMI's client; safe to use from any thread and after a fork.

    Args:
        name: The QPU's name.
        type: QRMI's resource type (`pasqal-cloud`).
        environment: QRMI's settings, without the `NAME_` prefix. They override what the handle
            gets otherwise: the type's defaults, and the job that this process runs in.
        token: The acquisition token that tasks run under, if the QPU has been acquired.
        deadlines: Seconds by method; these override `DEADLINES`.

    Raises:
        ConfigError: No vendor has registered the type, and QRMI does not know it; or the QPU's
            emulator has not been started.
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
        self.name = name
        self.type = type
        require_reachable(name, environment)
        known = _find_type(name, type)
        # QRMI's handles take all settings from here, and none from the environment.
        settings = {**known.settings, **describe_this_job(), **environment}
        self._environment = settings | ({TOKEN: token} if token else {})
        self._remedies = known.remedies
        self._deadlines = {**DEADLINES, **(deadlines or {})}
        own_name = environment.get(RESOURCE_ID, name)
        make = partial(_make_handle, own_name, known.qrmi, self._environment)
        self._handles = HandlePool(make, f"qrmi-{name}")
        self._last_answer = float("-inf")
        self._submissions = Submissions()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.type!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, alone or within a lease."""
        raise TypeError(
            f"the handle of QPU {self.name!r} holds credentials and cannot leave its process. "
            "From an app, return the results instead."
        )

    def resource_id(self) -> str:
        """Return the QPU's name."""
        return self.name

    def resource_type(self) -> Any:
        """Return QRMI's `ResourceType`."""
        return self._call("resource_type")

    def is_accessible(self) -> bool:
        """Return whether the QPU accepts tasks, that is, whether its `status` is online."""
        # QRMI's own is_accessible is deprecated in favour of status (qrmi 0.26).
        return str(self.status().status).rpartition(".")[2] == "Online"

    def acquire(self) -> str:
        """Acquire the QPU and return the acquisition token.

        A token that arrives after the deadline is released immediately. If this call is
        interrupted, it waits a few seconds for the token, and releases it.
        """
        return str(self._call("acquire", on_late=self._release_late))

    def release(self, token: str, *, deadline: float | None = None) -> None:
        """Release the QPU, given the token that `acquire` returned.

        Args:
            token: The acquisition token.
            deadline: Seconds that the call may take, if less than in `DEADLINES`.
        """
        self._call("release", token, deadline=deadline)

    def task_start(self, payload: Any) -> str:
        """Start a task and return its id.

        If the last answer of the vendor is more than a second old, this asks for its status first.
        If that fails, nothing has been submitted; a failed submission would leave that open.

        Args:
            payload: A `VendorPayload`, or QRMI's own `Payload`.
        """
        self._require_contact()
        return str(self._call("task_start", to_qrmi_payload(payload)))

    def begin_task(
        self, payload: Any, *, before: Callable[[], None], needs_lane: bool = False
    ) -> StartCall | None:
        """Start a task as `task_start` does, without waiting for the vendor's answer.

        Args:
            payload: A `VendorPayload`, or QRMI's own `Payload`.
            before: Called immediately before the request is sent, but not if an error is raised.
            needs_lane: Whether to send it only if the vendor says that a lane is free.

        Returns:
            The call; `None` if it needs a lane and none is free.

        Raises:
            ResourceError, ConfigError, PayloadError: Nothing was sent.
        """
        qrmi_payload = to_qrmi_payload(payload)
        if not needs_lane:
            self._require_contact()
            return self._begin(qrmi_payload, before)
        self._submissions = self._submissions.in_this_process()
        with self._submissions.lock:  # otherwise two threads would both see the last free lane
            if not self._has_free_lane():
                return None
            return self._begin(qrmi_payload, before)

    def task_stop(self, task_id: str, *, deadline: float | None = None) -> None:
        """Cancel a task.

        Args:
            task_id: The task.
            deadline: Seconds that the call may take, if less than in `DEADLINES`.
        """
        self._call("task_stop", task_id, deadline=deadline)

    def task_status(
        self,
        task_id: str,
        *,
        deadline: float | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """Return QRMI's `TaskStatus`.

        Args:
            task_id: The task's id.
            deadline: Seconds that the call may take, if less than in `DEADLINES`.
            stop: Set this event to give up waiting, as at the deadline.
        """
        return self._call("task_status", task_id, deadline=deadline, stop=stop)

    def task_result(self, task_id: str) -> Any:
        """Return QRMI's `TaskResult`."""
        return self._call("task_result", task_id)

    def task_logs(self, task_id: str) -> str:
        """Return the vendor's log of a task."""
        return self._redact(str(self._call("task_logs", task_id)))

    def target(self) -> Any:
        """Return QRMI's `Target`."""
        return self._call("target")

    def metadata(self) -> dict[str, str]:
        """Return the vendor's metadata on the QPU."""
        return dict(self._call("metadata"))

    def status(self, *, deadline: float | None = None) -> Any:
        """Return QRMI's `ResourceStatus`.

        Args:
            deadline: Seconds that the call may take, if less than in `DEADLINES`.
        """
        return self._call("status", deadline=deadline)

    def deadline_of(self, method: str) -> float:
        """Return how many seconds a call may take."""
        return self._deadlines.get(method, _DEFAULT_DEADLINE)

    @property
    def token(self) -> str | None:
        """The acquisition token that tasks run under now."""
        return self._environment.get(TOKEN)

    def use_token(self, token: str) -> None:
        """Run tasks under another acquisition token from now on."""
        # Pasqal Local's handles read the token when they are created, so replace them.
        self._environment[TOKEN] = token
        self._handles.replace()
        self._handles.prepare()

    def prepare(self) -> None:
        """Start a thread for the next call: Python 3.12 starts none while it shuts down."""
        self._handles.prepare()

    def close(self) -> None:
        """End the idle threads and their connections; the next call opens new ones."""
        self._handles.close()

    def _call(
        self,
        method: str,
        *args: Any,
        on_late: Callable[[Future[Any]], None] | None = None,
        deadline: float | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        limit = self.deadline_of(method)
        seconds = limit if deadline is None else min(deadline, limit)
        handle = self._handles.take()
        was_used = handle.was_used
        try:
            return self._call_with(handle, method, args, on_late, seconds, stop)
        except AuthenticationError:
            if not was_used:
                raise
        # IBM QCS's handle keeps an access token until it expires, even if the vendor has forgotten
        # it (qrmi 0.26.4); a new handle fetches another. Repeating is safe: the refused call had no
        # effect.
        self.close()
        return self._call_with(self._handles.take(), method, args, on_late, seconds, stop)

    def _call_with(
        self,
        handle: Handle,
        method: str,
        args: tuple[Any, ...],
        on_late: Callable[[Future[Any]], None] | None,
        seconds: float,
        stop: threading.Event | None,
    ) -> Any:
        future = handle.call(method, args)
        is_reusable = False
        try:
            value = self._await(future, method, args, seconds, stop)
        except AuthenticationError:
            raise
        except (ResourceError, ConfigError, TaskUnknownError):
            is_reusable = True
            if on_late and not future.done():
                future.add_done_callback(on_late)
            raise
        except BaseException:  # interrupted: the process is likely to end soon
            if on_late:
                wait([future], timeout=_LATE_SECONDS)
                on_late(future)
            raise
        else:
            is_reusable = True
            self._last_answer = time.monotonic()
            return value
        finally:
            # A handle whose call has not returned still belongs to its thread: abandon both.
            if is_reusable and future.done():
                self._handles.put_back(handle)
            else:
                handle.dismiss()

    def _begin(self, payload: Any, before: Callable[[], None]) -> StartCall:
        handle = self._handles.take()
        try:
            before()
        except BaseException:
            self._handles.put_back(handle)
            raise
        self._submissions = self._submissions.in_this_process()
        unanswered = self._submissions.unanswered
        call = handle.call("task_start", (payload,), partial(self._put_back_answered, handle))
        unanswered.add(call)
        call.add_done_callback(unanswered.discard)
        return StartCall(call, lambda error: self._classify(error, call, "task_start", (payload,)))

    def _put_back_answered(self, handle: Handle, call: Call) -> None:
        error = call.exception()
        if error is None:
            self._last_answer = time.monotonic()
        elif isinstance(self._classify(error, call, "task_start", ()), AuthenticationError):
            # Idle handles may hold the same access token (IBM QCS, qrmi 0.26.4).
            handle.dismiss()
            self.close()
            return
        self._handles.put_back(handle)

    def _has_free_lane(self) -> bool:
        status = self._ask_status()
        slots = status.capacity and status.capacity.available_slots
        return not status.busy and (slots is None or slots > len(self._submissions.unanswered))

    def _require_contact(self) -> None:
        if time.monotonic() - self._last_answer >= _FRESH_SECONDS:
            self._ask_status()

    def _ask_status(self) -> Any:
        """Return the status before a submission; if the call fails, nothing was submitted."""
        try:
            return self.status()
        except ResourceError as error:
            error.had_no_effect = True
            raise

    def _release_late(self, acquired: Future[Any]) -> None:
        if acquired.done() and acquired.exception() is None:
            with suppress(QPUError):
                self.release(str(acquired.result()))

    def _await(
        self,
        call: Call,
        method: str,
        args: tuple[Any, ...],
        seconds: float,
        stop: threading.Event | None,
    ) -> Any:
        try:
            failure = failure_of(call, seconds, stop)
        except TimeoutError as error:
            remedy = "" if method == "task_start" else f" {TRY_LATER}"
            raise DeadlineError(
                f"QPU {self.name!r} did not answer {method} within {seconds:.3g} s.{remedy}",
                self.name,
                method,
                retryable=True,
            ) from error
        if failure is not None:
            raise self._classify(failure, call, method, args) from failure
        return call.result()

    def _classify(
        self, error: BaseException, call: Call, method: str, args: tuple[Any, ...]
    ) -> QPUError:
        # Redact in place, because a traceback also shows this cause.
        error.args = (self._redact(str(error), *(args if method == "release" else ())),)
        found = classify(error, self.name, method, args, self._remedies)
        if isinstance(found, ResourceError):
            found.had_no_effect |= not call.was_made
            return ended_emulator(found, self._environment) or found
        return found

    def _redact(self, text: str, *tokens: str) -> str:
        return redact(text, {*secrets_of(self._environment), *tokens})


def _find_type(qpu: str, type_: str) -> ResourceType:
    """Find a resource type among the registered ones, else by QRMI's own name for it."""
    if (registered := registered_type(type_)) is not None:
        return registered
    # QRMI exposes only its enum's members (`IQMServer`), not the names of types (`iqm-server`).
    members = {name.lower(): name for name in dir(import_qrmi().ResourceType)}
    if (member := members.get(type_.replace("-", ""))) is not None:
        return ResourceType(qrmi=member)
    raise ConfigError(
        f"QPU {qpu!r} has unknown type {type_!r}; must be one of: {', '.join(registered_types())}, "
        "or another of QRMI's resource types. Correct `type` in qrmi_config.json, or install the "
        "vendor's package."
    )


def _make_handle(name: str, member: str, environment: Mapping[str, str]) -> Any:
    qrmi = import_qrmi()
    return qrmi.QuantumResource.from_config(name, getattr(qrmi.ResourceType, member), environment)
