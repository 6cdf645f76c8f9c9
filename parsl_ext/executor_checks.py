"""What a `QPUExecutor` refuses when it is made."""

from __future__ import annotations

from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_ext.launcher import LeaseLauncher
from parsl_ext.providers.base import QPUProvider
from qrmi_workflows.config.job import read_job
from qrmi_workflows.errors import RequestError

__all__ = ["require_lease", "require_positive", "require_seconds", "require_stage_lanes"]


def require_lease(provider: ExecutionProvider) -> None:
    """Refuse a provider whose blocks would hold no QPU."""
    if isinstance(provider, QPUProvider):
        if provider.qpu is None:
            raise RequestError(
                "qpu=None: the blocks of a `QPUExecutor` must use a QPU. Name it, or use a "
                "`HighThroughputExecutor` for classical blocks."
            )
        return
    launcher = getattr(provider, "launcher", None)
    if isinstance(launcher, LeaseLauncher):
        return
    # In a job that holds a lease, the workers on its own nodes inherit that.
    if isinstance(provider, LocalProvider) and any(
        carried.token is not None for carried in read_job().values()
    ):
        return
    raise RequestError(
        f"the blocks of {type(provider).__name__} hold no QPU: its launcher must be a "
        "`LeaseLauncher`. Write `launcher=LeaseLauncher(qpu=…)`, or use a `QPUSlurmProvider`."
    )


def require_positive(**numbers: int | None) -> None:
    """Refuse a number of lanes or workers that is none."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise RequestError(
                f"{name}={number}: must be a positive integer. Leave it out for the default."
            )


def require_seconds(**times: float | None) -> None:
    """Refuse a time that is negative."""
    for name, seconds in times.items():
        if seconds is not None and not seconds >= 0:  # NaN is not
            raise RequestError(
                f"{name}={seconds}: must be zero or more seconds. Leave it out for the default."
            )


def require_stage_lanes(provider: ExecutionProvider | None, lanes: int | None) -> None:
    """Refuse more lanes than the stage of the provider's blocks has."""
    if lanes is None or not isinstance(provider, QPUProvider) or provider.stage is None:
        return
    (policy,) = provider.qpu_policies
    if lanes > policy.lanes:
        raise RequestError(
            f"lanes={lanes}: the stage of these blocks has {policy.lanes}, which all its blocks "
            "share. Ask for that many or fewer, or leave it out."
        )
