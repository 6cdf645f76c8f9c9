"""The release of a QPU, within its share of KillWait."""

from __future__ import annotations

import time

from qrmi_workflows.client.failures import is_session_ended, is_transient
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.killwait import release_budget
from qrmi_workflows.retry import retry
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["release_in_time", "releasing_cancels"]

_SHORTEST_CALL = 0.5  # seconds: a release call needs some time, however late it is made


def release_in_time(resource: QRMIResource, token: str) -> None:
    """Release a QPU within this share of KillWait, even if the vendor fails or hangs.

    Args:
        resource: QRMI's handle to the QPU.
        token: The acquisition token.

    Raises:
        QPUError: The release failed; a session that has ended already counts as released.
    """
    end = time.monotonic() + release_budget().release

    def request() -> None:
        # Looked up for each call: SIGTERM may have arrived since the last one.
        seconds = min(release_budget().release_call, end - time.monotonic())
        resource.release(token, deadline=max(_SHORTEST_CALL, seconds))

    def may_repeat(error: BaseException) -> bool:
        return is_transient(error) and not is_session_ended(error)

    seconds = max(0.0, end - time.monotonic() - _SHORTEST_CALL)
    try:
        retry(request, may_repeat, seconds=seconds, max_pause=1.0)
    except QPUError as error:
        if not is_session_ended(error):
            raise


def releasing_cancels(resource_type: str) -> bool:
    """Return whether releasing a QPU of this type cancels the lease's unfinished tasks."""
    registered = registered_type(resource_type)
    return registered is not None and registered.release_cancels
