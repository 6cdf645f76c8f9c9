"""Compile a request for a QPU into the scheduler's options: the one way to them."""

from __future__ import annotations

import logging

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.notices import read_notice
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.access import require_access
from qrmi_workflows.schedulers.base import QPURequest, Scheduler

__all__ = ["compile_request", "require_allowed", "require_request"]

logger = logging.getLogger(__name__)

_announced: set[str] = set()


def compile_request(
    request: QPURequest,
    site: SitePolicy,
    scheduler: Scheduler,
    *,
    account: str | None = None,
    partition: str | None = None,
) -> list[str]:
    """Return the scheduler's options for a request that the site policy allows.

    For an emulated QPU there are none: any job may have one.

    Args:
        request: The request.
        site: The site policy.
        scheduler: The scheduler.
        account: The account that the job is charged to; the user's default if `None`.
        partition: The partition that the user has chosen; that of the policy if `None`.

    Raises:
        RequestError: The policy does not allow it.
        UnknownQPUError: The site does not offer the QPU.
    """
    if is_emulated(request.qpu):
        return []
    require_request(request, site, scheduler, account=account, partition=partition)
    return scheduler.qpu_options(request, site)


def require_request(
    request: QPURequest,
    site: SitePolicy,
    scheduler: Scheduler,
    *,
    account: str | None = None,
    partition: str | None = None,
) -> None:
    """Refuse a request that the site policy does not allow; see `compile_request`.

    A QPU that is away is not refused: its jobs wait in the queue. A warning says so, once.
    """
    if is_emulated(request.qpu):
        return
    require_allowed(request, site, scheduler, account=account, partition=partition)
    notice = read_notice(request.qpu, site)
    if notice is not None and str(notice) not in _announced:
        _announced.add(str(notice))
        logger.warning("%s. Its jobs start when it is back.", notice)


def require_allowed(
    request: QPURequest,
    site: SitePolicy,
    scheduler: Scheduler,
    *,
    account: str | None = None,
    partition: str | None = None,
) -> None:
    """Refuse a request that the site policy does not allow, without a word about the QPU's state.

    Raises:
        RequestError: The policy does not allow it.
        UnknownQPUError: The site does not offer the QPU.
    """
    require_access(request.qpu, site, scheduler, account=account, partition=partition)
    _require_units(request, site.qpu(request.qpu))


def _require_units(request: QPURequest, policy: QPUPolicy) -> None:
    if policy.exclusive and request.count > 1:
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: one job holds the whole QPU, with all "
            "its lanes. Ask for qpu=1."
        )
    if policy.exclusive is False and request.count > policy.lanes:
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: it has {policy.lanes} lanes. Ask for "
            f"qpu={policy.lanes} or fewer."
        )
