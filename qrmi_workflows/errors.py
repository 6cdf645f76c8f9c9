"""Every error that qrmi-workflows raises.

The tree::

    QPUError
    ├── ConfigError              qrmi_config.json, a site policy or the job's environment is wrong
    │   ├── UnknownQPUError      a QPU name that is not defined, or not offered here
    │   └── RequestError         a request for a QPU that cannot be granted
    ├── PayloadError             a payload that cannot run on this QPU
    ├── ResultError              a result or its file cannot be read
    │   └── UndecodedResultError a completed task's result cannot be decoded by this release
    ├── BudgetError              a task would take more than is left of a budget
    ├── LeaseError               a lease could not be opened, kept or released
    │   └── StepMovedError       the step goes on on another QPU, in a job of its own
    ├── ResourceError            a call to a vendor's API, through QRMI, failed
    │   ├── AuthenticationError  the vendor rejected the credentials
    │   ├── DeadlineError        the vendor did not answer in time
    │   ├── QPUGoneError         the QPU is offline, or its vendor cannot be reached
    │   └── SessionEndedError    the vendor has closed the lease's session
    ├── TaskError                a task did not complete
    │   ├── TaskFailedError      the vendor reports Failed
    │   ├── TaskCancelledError   the vendor reports Cancelled
    │   ├── TaskUnknownError     the vendor does not know the task
    │   └── AmbiguousTaskError   it is not known whether the vendor accepted the task
    ├── JournalError             the journal could not be read or written
    ├── SchedulerError           a scheduler's command failed
    ├── SandboxError             the personal Slurm cluster could not be started or stopped
    └── EmulatorError            a QPU, simulator or fault that the emulator does not have

All are a `RuntimeError`, as QRMI's own errors are, and a `PayloadError` is a `ValueError`, as
Qiskit's and Pulser's are for a wrong input: programs that catch those catch ours.

Each error has an attribute `retryable`: whether the same request may succeed later. Each survives
pickling: Parsl sends exceptions from its workers to the submitting process, and one that cannot be
unpickled there stops the whole executor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "AmbiguousTaskError",
    "AuthenticationError",
    "BudgetError",
    "ConfigError",
    "DeadlineError",
    "EmulatorError",
    "JournalError",
    "LeaseError",
    "PayloadError",
    "QPUError",
    "QPUGoneError",
    "RequestError",
    "ResourceError",
    "ResultError",
    "SandboxError",
    "SchedulerError",
    "SessionEndedError",
    "StepMovedError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskUnknownError",
    "UndecodedResultError",
    "UnknownQPUError",
]


class QPUError(RuntimeError):
    """The root of the tree.

    Attributes:
        retryable: Whether the same request may succeed later.
        exit_code: The exit code of the `qpu` command: 2 if the request was wrong, else 1.
    """

    retryable: bool = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *details: object) -> None:
        super().__init__(message, *details)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(QPUError):
    """A configuration file, the site policy or the job's environment is wrong."""

    exit_code = 2


class UnknownQPUError(ConfigError):
    """A QPU name that is not defined, or not offered here.

    Args:
        qpu: The name asked for.
        allowed: The names that are known.
        where: Where the name was looked up, as a phrase: "in /etc/slurm/qrmi_config.json".
        remedy: What to do next, as a sentence.
    """

    def __init__(self, qpu: str, allowed: Iterable[str], where: str, remedy: str = "") -> None:
        from difflib import get_close_matches  # most processes make no mistake

        names = tuple(sorted(allowed))
        near = get_close_matches(qpu, names, n=1)
        advice = f"Did you mean {near[0]!r}?" if near else remedy
        offered = ", ".join(names) or "none"
        text = f"unknown QPU {qpu!r} {where}; must be one of: {offered}. {advice}".rstrip()
        super().__init__(text)
        self.args = (qpu, names, where, remedy)
        self.qpu = qpu
        self.allowed = names


class RequestError(ConfigError):
    """A request for a QPU that cannot be granted (a count of zero, GRES given twice)."""


class PayloadError(QPUError, ValueError):
    """A payload that cannot run: not JSON, of the wrong schema, or for another vendor."""

    exit_code = 2


class ResultError(QPUError):
    """A result that cannot be decoded, or a result file that cannot be read."""


class UndecodedResultError(ResultError):
    """A task has completed, but this release cannot decode its result, whose text is kept.

    Args:
        message: Which task, and why.
        result: The `QuantumResult`, with the vendor's text and without data.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message, result)
        self.result = result


class BudgetError(QPUError):
    """A task would take more than is left of a budget; it was not submitted.

    Args:
        message: Whose budget, what is left, what the task would take, what to do next.
        budget: Whose budget it is (`user alice`).
        left: How much is left of it; `None` if that is not known.
        needed: How much the task would take; `None` if that is not known.
        unit: `shots` or `seconds`.
        ends: When the budget's period ends, ISO 8601 in UTC; `None` if it has no end.
        retryable: Whether the same request may succeed soon.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        budget: str = "",
        left: float | None = None,
        needed: float | None = None,
        unit: str = "",
        ends: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, budget, left, needed, unit, ends, retryable)
        self.budget = budget
        self.left = left
        self.needed = needed
        self.unit = unit
        self.ends = ends
        self.retryable = retryable


class LeaseError(QPUError):
    """A lease could not be opened, kept or released.

    Args:
        message: What failed, what is allowed, what to do next.
        qpu: The QPU's name.
        retryable: Whether the same request may succeed later.
    """

    def __init__(self, message: str, qpu: str = "", retryable: bool = False) -> None:
        super().__init__(message, qpu, retryable)
        self.qpu = qpu
        self.retryable = retryable


class StepMovedError(LeaseError):
    """The QPU has gone, and the next one can only be used by a job that requests it.

    Args:
        message: What has happened, and how to submit the step again.
        qpu: The QPU that has gone.
        next_qpu: The QPU to submit the step for.
    """

    exit_code = 75  # EX_TEMPFAIL of <sysexits.h>

    def __init__(self, message: str, qpu: str = "", next_qpu: str = "") -> None:
        super().__init__(message, qpu, True)
        self.args = (message, qpu, next_qpu)
        self.next_qpu = next_qpu


class ResourceError(QPUError):
    """A call to a vendor's API, through QRMI, failed.

    Args:
        message: What failed, with the vendor's own words.
        qpu: The QPU's name.
        call: QRMI's method (`task_start`).
        status_code: The vendor's HTTP status, if known.
        retryable: Whether the same call may succeed later.
        had_no_effect: Whether the vendor certainly did not act on the call.
    """

    def __init__(
        self,
        message: str,
        qpu: str = "",
        call: str = "",
        status_code: int | None = None,
        retryable: bool = False,
        had_no_effect: bool = False,
    ) -> None:
        super().__init__(message, qpu, call, status_code, retryable, had_no_effect)
        self.qpu = qpu
        self.call = call
        self.status_code = status_code
        self.retryable = retryable
        self.had_no_effect = had_no_effect


class AuthenticationError(ResourceError):
    """The vendor rejected the credentials."""


class DeadlineError(ResourceError):
    """The vendor did not answer before the call's deadline."""


class QPUGoneError(ResourceError):
    """The QPU is offline, or its vendor cannot be reached; nothing was submitted to it."""


class SessionEndedError(ResourceError):
    """The vendor has closed the lease's session, or the session's time to live has expired."""


class TaskError(QPUError):
    """A task did not complete.

    Args:
        message: What happened, with the vendor's reason.
        qpu: The QPU's name.
        task_id: The vendor's id of the task.
    """

    def __init__(self, message: str, qpu: str = "", task_id: str = "") -> None:
        super().__init__(message, qpu, task_id)
        self.qpu = qpu
        self.task_id = task_id


class TaskFailedError(TaskError):
    """The vendor reports that the task failed."""


class TaskCancelledError(TaskError):
    """The vendor reports that the task was cancelled."""


class TaskUnknownError(TaskError):
    """The vendor does not know, or no longer knows, the task."""


class AmbiguousTaskError(TaskError):
    """The answer to a submission was lost: the vendor may or may not have accepted the task."""


class JournalError(QPUError):
    """The journal could not be read or written. No task is submitted without its record."""


class SchedulerError(QPUError):
    """A scheduler's command failed.

    Args:
        message: What failed and what to do next.
        argv: The command.
        returncode: Its exit status; `None` if it did not end in time.
        stderr: What it printed to its standard error.
        retryable: Whether the same command may succeed later.
    """

    def __init__(
        self,
        message: str,
        argv: tuple[str, ...] = (),
        returncode: int | None = None,
        stderr: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(message, argv, returncode, stderr, retryable)
        self.argv = argv
        self.returncode = returncode
        self.stderr = stderr
        self.retryable = retryable


class SandboxError(QPUError):
    """The personal Slurm cluster could not be started, found or stopped."""


class EmulatorError(QPUError):
    """A QPU, simulator or fault that the emulator does not have."""

    exit_code = 2
