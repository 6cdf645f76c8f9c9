"""This package's errors as the classes that programs for Qiskit and QRMI catch as well.

The errors of a job are those that `RuntimeJobV2` raises (qiskit-ibm-runtime 0.51), and QRMI's
`QrmiError`, beside our own classes: each error is an instance of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from typing import Any

from qrmi_workflows.client.failures import qrmi_error
from qrmi_workflows.errors import (
    QPUError,
    ResourceError,
    TaskCancelledError,
    TaskFailedError,
)

__all__ = ["as_job_error", "job_errors", "timed_out"]


@contextmanager
def job_errors() -> Iterator[None]:
    """Raise the errors of a job as Qiskit's and QRMI's classes, too."""
    try:
        yield
    except QPUError as error:
        raise as_job_error(error) from error.__cause__
    except CancelledError as error:
        raise as_job_error(TaskCancelledError("the task was cancelled.")) from error


def as_job_error(error: QPUError) -> QPUError:
    """Return the same error, as an instance of Qiskit's and QRMI's classes, too."""
    kind: Any = type(error)
    if not hasattr(kind, "our_class"):
        kind = _combined(kind)
    # Without the constructors: Qiskit's takes strings only, and joins them.
    converted: QPUError = kind.__new__(kind, *error.args)
    converted.__dict__.update(error.__dict__)
    return converted


def timed_out(seconds: float | None) -> TimeoutError:
    """Return Qiskit's error for a result that was not available in time."""
    error: TimeoutError = _timeout_class()(
        f"the job has not ended within {seconds} s. Call again to wait longer."
    )
    return error


@cache
def _combined(kind: Any) -> Any:
    from qiskit.providers import JobError
    from qiskit_ibm_runtime import exceptions

    bases: list[Any] = [kind]
    if issubclass(kind, TaskFailedError):
        bases.append(exceptions.RuntimeJobFailureError)
    elif issubclass(kind, TaskCancelledError):
        bases += [CancelledError, exceptions.RuntimeInvalidStateError, JobError]
    elif issubclass(kind, ResourceError):
        bases += [exceptions.IBMRuntimeError, JobError]
    else:
        bases.append(JobError)
    attributes = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__reduce__": _reduce,
        "our_class": kind,
    }
    return type(kind.__name__, (*bases, qrmi_error()), attributes)


def _reduce(error: Any) -> tuple[Any, ...]:
    """Pickle the error as ours, and convert it again where it is loaded."""
    return as_job_error, (error.our_class(*error.args),)


@cache
def _timeout_class() -> Any:
    from qiskit_ibm_runtime.exceptions import RuntimeJobTimeoutError

    return type("JobTimeoutError", (RuntimeJobTimeoutError, TimeoutError), {"__module__": __name__})
