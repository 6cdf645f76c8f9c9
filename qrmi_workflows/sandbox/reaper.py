"""Run a daemon and adopt all of its orphaned descendants, so that none escapes `down`.

A job may start a process that leaves its session, loses its parent and clears its environment.
Linux gives such an orphan to its nearest ancestor with `PR_SET_CHILD_SUBREAPER`. This module runs
as a script and imports nothing else of the package, to stay small.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def main(report: int, argv: list[str]) -> None:
    """Run a daemon, report its process id, and wait until all descendants have exited.

    Args:
        report: The file descriptor to write the process id to.
        argv: The daemon's command.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    daemon = os.fork()
    if daemon == 0:
        os.close(report)
        os.execv(argv[0], argv)  # noqa: S606 - becomes the daemon
    os.write(report, f"{daemon}\n".encode())
    os.close(report)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # exits after its last child
    with suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
