"""Qiskit's V2 primitives under a lease: every task journaled, as many at once as there are lanes.

The options are those of QRMI's own primitives (`default_shots`, `default_precision`,
`run_options`), so that a program changes from those to these by one line.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, QPUError, TaskCancelledError
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.ibm.circuits import primitive_content, to_openqasm

if TYPE_CHECKING:
    from qiskit.primitives import BaseEstimatorV2, BasePrimitiveJob, BaseSamplerV2, PrimitiveResult
    from qiskit.providers import JobStatus

    from qrmi_workflows.lease.lease import Lease
    from qrmi_workflows.results import QuantumResult

__all__ = ["make_estimator", "make_sampler"]

_DEFAULT_SHOTS = 1024
_DEFAULT_PRECISION = 0.015625  # 1 / sqrt(4096)


def make_sampler(lease: Lease, options: Mapping[str, Any] | None = None) -> BaseSamplerV2:
    """Return Qiskit's sampler (V2) of a lease's QPU.

    Args:
        lease: Where the tasks run.
        options: `default_shots`, and `run_options`: IBM's options of the sampler.

    Raises:
        PayloadError: There is no such option.
        ConfigError: Qiskit is not installed.
    """
    with needs_extra("ibm"):
        return _sampler_class()(lease, _merged({"default_shots": _DEFAULT_SHOTS}, options))


def make_estimator(lease: Lease, options: Mapping[str, Any] | None = None) -> BaseEstimatorV2:
    """Return Qiskit's estimator (V2) of a lease's QPU.

    Args:
        lease: Where the tasks run.
        options: `default_precision`, and `run_options`: IBM's options of the estimator.

    Raises:
        PayloadError: There is no such option.
        ConfigError: Qiskit is not installed.
    """
    with needs_extra("ibm"):
        defaults = {"default_precision": _DEFAULT_PRECISION}
        return _estimator_class()(lease, _merged(defaults, options))


class _Primitive:
    """What the two have in common. Circuits are checked against the QPU's target."""

    def __init__(self, lease: Lease, options: Mapping[str, Any]) -> None:
        self._lease = lease
        self.options = dict(options)

    def _submit(self, program: str, pubs: list[list[Any]]) -> BasePrimitiveJob[Any, Any]:
        if not pubs:
            raise PayloadError(
                f"the {program} was given an empty list of PUBs. Give one circuit or more."
            )
        content = primitive_content(program, pubs, self.options["run_options"])
        with suppress(QPUError):  # without it the vendor alone says what it refuses
            self._lease.target()
        return _job_class()(self._lease, content)


class _Sampler(_Primitive):
    def run(
        self, pubs: Iterable[Any], *, shots: int | None = None
    ) -> BasePrimitiveJob[PrimitiveResult[Any], JobStatus]:
        """Sample each PUB.

        Args:
            pubs: Circuits, or tuples of a circuit, parameter values and shots.
            shots: For the PUBs that do not say it; else `options["default_shots"]`.

        Raises:
            PayloadError: A PUB is malformed, or cannot run on the QPU.
        """
        default = self.options["default_shots"] if shots is None else shots
        return self._submit("sampler", [_sampler_pub(pub, default) for pub in _listed(pubs)])


class _Estimator(_Primitive):
    def run(
        self, pubs: Iterable[Any], *, precision: float | None = None
    ) -> BasePrimitiveJob[PrimitiveResult[Any], JobStatus]:
        """Estimate each PUB's observables.

        Args:
            pubs: Tuples of a circuit, observables, parameter values and a precision.
            precision: For the PUBs that do not say it; else `options["default_precision"]`.

        Raises:
            PayloadError: A PUB is malformed, or cannot run on the QPU.
        """
        default = self.options["default_precision"] if precision is None else precision
        return self._submit("estimator", [_estimator_pub(pub, default) for pub in _listed(pubs)])


class _Job:
    """A task under a lease, as Qiskit's jobs are asked.

    Its `job_id` names it within this process; `task_id` is the vendor's, once it is known.
    """

    def __init__(self, lease: Lease, content: Mapping[str, Any]) -> None:
        super().__init__(str(uuid.uuid4()))  # type: ignore[call-arg]  # Qiskit's base, mixed in
        self._seen = ""
        self._future = lease.submit(content, on_state=self._see)

    @property
    def task_id(self) -> str | None:
        """The vendor's id, once it is known."""
        return self._future.task_id

    @property
    def future(self) -> Future[QuantumResult]:
        """The task's result to come, with its provenance."""
        return self._future

    def result(self, timeout: float | None = None) -> PrimitiveResult[Any]:
        """Wait for the result, and return it.

        Raises:
            TaskError: The task ended without a result.
            TimeoutError: It was not there in so many seconds.
        """
        return self._future.result(timeout).to_primitive_result()

    def status(self) -> JobStatus:
        """Return how far it has come, as the vendor last said."""
        from qiskit.providers import JobStatus

        if self.cancelled():
            return JobStatus.CANCELLED
        if self._future.done():
            return JobStatus.ERROR if self._future.exception() else JobStatus.DONE
        states = {"Queued": JobStatus.QUEUED, "Running": JobStatus.RUNNING}
        return states.get(self._seen, JobStatus.INITIALIZING)

    def done(self) -> bool:
        """Return whether there is a result."""
        return self.in_final_state() and not self.cancelled() and not self._future.exception()

    def running(self) -> bool:
        """Return whether it is on the QPU."""
        return not self._future.done() and self._seen == "Running"

    def cancelled(self) -> bool:
        """Return whether it was cancelled, here or at the vendor."""
        if not self._future.done() or self._future.cancelled():
            return self._future.cancelled()
        return isinstance(self._future.exception(), TaskCancelledError)

    def in_final_state(self) -> bool:
        """Return whether it has ended."""
        return self._future.done()

    def cancel(self) -> None:
        """Cancel it at the vendor too."""
        self._future.cancel()

    def _see(self, _task_id: str, state: object) -> None:
        self._seen = str(state)


# Qiskit is imported when a primitive is first asked for, so its bases join the classes here.
@cache
def _sampler_class() -> Any:
    from qiskit.primitives import BaseSamplerV2

    return type("LeaseSampler", (_Sampler, BaseSamplerV2), {"__doc__": BaseSamplerV2.__doc__})


@cache
def _estimator_class() -> Any:
    from qiskit.primitives import BaseEstimatorV2

    return type("LeaseEstimator", (_Estimator, BaseEstimatorV2), {})


@cache
def _job_class() -> Any:
    from qiskit.primitives import BasePrimitiveJob

    return type("LeaseJob", (_Job, BasePrimitiveJob), {"__doc__": _Job.__doc__})


def _merged(defaults: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    allowed = {**defaults, "run_options": {}}
    if unknown := sorted(set(options or {}) - set(allowed)):
        raise PayloadError(
            f"unknown option {unknown[0]!r}; allowed: {', '.join(allowed)}. Put IBM's own options "
            "into `run_options`."
        )
    return allowed | dict(options or {})


def _listed(pubs: Iterable[Any]) -> list[Any]:
    try:
        return list(pubs)
    except TypeError as error:
        raise PayloadError(
            f"PUBs come in a list, not as {type(pubs).__name__}. Write `run([circuit])`."
        ) from error


def _sampler_pub(pub: Any, shots: int) -> list[Any]:
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    coerced = _coerced(SamplerPub, pub, shots)
    return [to_openqasm(coerced.circuit), _values(coerced), coerced.shots]


def _estimator_pub(pub: Any, precision: float) -> list[Any]:
    from qiskit.primitives.containers.estimator_pub import EstimatorPub

    coerced = _coerced(EstimatorPub, pub, precision)
    observables = coerced.observables.tolist()
    return [to_openqasm(coerced.circuit), observables, _values(coerced), coerced.precision]


def _coerced(kind: Any, pub: Any, default: float) -> Any:
    try:
        return kind.coerce(pub, default)
    except Exception as error:  # Qiskit's own types of errors differ from check to check
        text = getattr(error, "message", None) or str(error)
        raise PayloadError(
            f"no valid {kind.__name__}: {text} Give a circuit with values for all its parameters, "
            "and a positive number of shots or a precision that is not negative."
        ) from error


def _values(pub: Any) -> list[Any]:
    values: list[Any] = pub.parameter_values.as_array(pub.circuit.parameters).tolist()
    return values if pub.circuit.parameters else []
