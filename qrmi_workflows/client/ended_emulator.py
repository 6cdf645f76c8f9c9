"""Tell an emulated QPU whose private emulator has ended from one that is slow to answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing

from qrmi_workflows.config.job import EMULATED
from qrmi_workflows.errors import ResourceError

__all__ = ["ended_emulator"]

_ADDRESS = re.compile(r"http://(?P<host>127\.0\.0\.1):(?P<port>\d+)\b")
_SECONDS = 1.0


def ended_emulator(error: ResourceError, environment: Mapping[str, str]) -> ResourceError | None:
    """Return the error to raise instead if nothing listens at the emulator's address any more.

    It does not come back: it ends with the lease that has started it.

    Args:
        error: The error of a call.
        environment: QRMI's settings for the QPU.
    """
    if EMULATED not in environment or error.status_code is not None:
        return None
    found = next(filter(None, map(_ADDRESS.match, environment.values())), None)
    if found is None or _is_listening(found["host"], int(found["port"])):
        return None
    return ResourceError(
        f"the emulator of QPU {error.qpu!r} has ended, with the process that held its lease or by "
        "itself. Run the step again.",
        error.qpu,
        error.call,
        had_no_effect=True,  # none that is left
    )


def _is_listening(host: str, port: int) -> bool:
    import socket  # most processes have no emulated QPU

    with closing(socket.socket()) as probe:
        probe.settimeout(_SECONDS)
        try:
            probe.connect((host, port))
        except ConnectionRefusedError:
            return False
        except OSError:  # it is busy
            return True
    return True
