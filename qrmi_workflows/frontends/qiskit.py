"""Qiskit's V2 primitives over a lease: tasks are journaled, and run in the QPU's lanes.

The options are those of QRMI's own primitives (`default_shots`, `default_precision`,
`run_options`), so a program needs to change only one line to use these instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from qrmi_workflows.errors import PayloadError, QPUError
from qrmi_workflows.frontends.qiskit_job import job_class
from qrmi_workflows.payloads import to_plain
from qrmi_workflows.vendors.base import needs_extra
from qrmi_workflows.vendors.ibm.circuits import primitive_content, to_openqasm
from qrmi_workflows.vendors.ibm.options import ESTIMATOR_OPTIONS, SAMPLER_OPTIONS
from qrmi_workflows.vendors.registry import describe_unknown, require_schema

if TYPE_CHECKING:
    from qiskit.primitives import BaseEstimatorV2, BasePrimitiveJob, BaseSamplerV2, PrimitiveResult
    from qiskit.providers import JobStatus

    from qrmi_workflows.lease.lease import Lease

__all__ = ["make_estimator", "make_sampler"]

# The defaults of QRMI's own primitives (qrmi 0.26.4).
_DEFAULT_SHOTS = 1024
_DEFAULT_PRECISION = 0.015625  # 1 / sqrt(4096)


def make_sampler(lease: Lease, options: Mapping[str, Any] | None = None) -> BaseSamplerV2:
    """Return a Qiskit sampler (V2) for a lease's QPU.

    Args:
        lease: The lease under which the tasks run.
        options: `default_shots`, and `run_options` for IBM's own sampler options.

    Raises:
        PayloadError: An option is unknown.
        ConfigError: Qiskit is not installed.
    """
    with needs_extra("ibm"):
        defaults = {"default_shots": _DEFAULT_SHOTS}
        return _sampler_class()(lease, _with_defaults(options, defaults, SAMPLER_OPTIONS))


def make_estimator(lease: Lease, options: Mapping[str, Any] | None = None) -> BaseEstimatorV2:
    """Return a Qiskit estimator (V2) for a lease's QPU.

    Args:
        lease: The lease under which the tasks run.
        options: `default_precision`, and `run_options` for IBM's own estimator options.

    Raises:
        PayloadError: An option is unknown.
        ConfigError: Qiskit is not installed.
    """
    with needs_extra("ibm"):
        defaults = {"default_precision": _DEFAULT_PRECISION}
        return _estimator_class()(lease, _with_defaults(options, defaults, ESTIMATOR_OPTIONS))


class _Primitive:
    """The common part of both primitives."""

    def __init__(self, lease: Lease, options: Mapping[str, Any]) -> None:
        self._lease = lease
        self.options = dict(options)

    def _submit(self, program: str, pubs: list[list[Any]]) -> BasePrimitiveJob[Any, Any]:
        if not pubs:
            raise PayloadError(
                f"pubs=[]: the {program} needs at least one PUB. Write `run([circuit])`."
            )
        content = primitive_content(program, pubs, self.options["run_options"])
        # `submit` checks circuits against the target if the lease has it. Without a target, only
        # the vendor checks them.
        with suppress(QPUError):
            self._lease.target()
        return job_class()(self._lease, content)


class _Sampler(_Primitive):
    def run(
        self, pubs: Iterable[Any], *, shots: int | None = None
    ) -> BasePrimitiveJob[PrimitiveResult[Any], JobStatus]:
        """Sample each PUB.

        Args:
            pubs: Circuits, or tuples of a circuit, parameter values and shots.
            shots: The number of shots for PUBs without their own. The default is
                `options["default_shots"]`.

        Raises:
            PayloadError: A PUB is malformed, or cannot run on the QPU.
        """
        default = self.options["default_shots"] if shots is None else shots
        return self._submit("sampler", [_sampler_pub(pub, default) for pub in _as_list(pubs)])


class _Estimator(_Primitive):
    def run(
        self, pubs: Iterable[Any], *, precision: float | None = None
    ) -> BasePrimitiveJob[PrimitiveResult[Any], JobStatus]:
        """Estimate each PUB's observables.

        Args:
            pubs: Tuples of a circuit, observables, parameter values and a precision.
            precision: The precision for PUBs without their own. The default is
                `options["default_precision"]`.

        Raises:
            PayloadError: A PUB is malformed, or cannot run on the QPU.
        """
        default = self.options["default_precision"] if precision is None else precision
        return self._submit("estimator", [_estimator_pub(pub, default) for pub in _as_list(pubs)])


# Importing this module must not import Qiskit, so its base classes are added on first use.
@cache
def _sampler_class() -> Any:
    from qiskit.primitives import BaseSamplerV2

    return type("LeaseSampler", (_Sampler, BaseSamplerV2), {"__doc__": BaseSamplerV2.__doc__})


@cache
def _estimator_class() -> Any:
    from qiskit.primitives import BaseEstimatorV2

    return type("LeaseEstimator", (_Estimator, BaseEstimatorV2), {})


def _with_defaults(
    options: Mapping[str, Any] | None, defaults: Mapping[str, Any], schema: Mapping[str, Any]
) -> dict[str, Any]:
    allowed = {**defaults, "run_options": {}}
    if set(options or {}) - set(allowed):
        reason = describe_unknown(options or {}, allowed, "option")
        raise PayloadError(f"{reason}. Put IBM's own options into `run_options`.")
    result = allowed | dict(options or {})
    result["run_options"] = to_plain(result["run_options"] or {})
    require_schema(
        result["run_options"], schema, where="run_options", advice="Correct or remove the option."
    )
    return result


def _as_list(pubs: Iterable[Any]) -> list[Any]:
    try:
        return list(pubs)
    except TypeError as error:
        raise PayloadError(
            f"pubs is of type {type(pubs).__name__}; must be a list of PUBs. Write "
            "`run([circuit])`."
        ) from error


def _sampler_pub(pub: Any, default_shots: int) -> list[Any]:
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    coerced = _coerce_pub(SamplerPub, pub, default_shots)
    return [to_openqasm(coerced.circuit), _parameter_values(coerced), coerced.shots]


def _estimator_pub(pub: Any, default_precision: float) -> list[Any]:
    from qiskit.primitives.containers.estimator_pub import EstimatorPub

    coerced = _coerce_pub(EstimatorPub, pub, default_precision)
    observables = coerced.observables.tolist()
    return [
        to_openqasm(coerced.circuit),
        observables,
        _parameter_values(coerced),
        coerced.precision,
    ]


def _coerce_pub(pub_class: Any, pub: Any, default: float) -> Any:
    """Let Qiskit validate a PUB, and fill in the default shots or precision."""
    try:
        return pub_class.coerce(pub, default)
    except Exception as error:  # the type depends on the mistake, and is not documented
        text = getattr(error, "message", None) or str(error)
        raise PayloadError(
            f"invalid {pub_class.__name__}: {text.rstrip('.')}. Give a circuit with values for all "
            "its parameters, and a positive number of shots or a non-negative precision."
        ) from error


def _parameter_values(pub: Any) -> list[Any]:
    values: list[Any] = pub.parameter_values.as_array(pub.circuit.parameters).tolist()
    return values if pub.circuit.parameters else []
