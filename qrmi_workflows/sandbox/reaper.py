"""Runs slurmd as the new parent of every orphan that its jobs leave: nothing escapes `down`.

A job may start a process that leaves its session, its parent and its environment behind. Linux
gives such an orphan to its nearest ancestor that asked for orphans (`PR_SET_CHILD_SUBREAPER`).
This module is run as a script, without the rest of the package, so that it is small.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def main(report: int, argv: list[str]) -> None:
    """Run a daemon, write its process id to a file descriptor, and stay until all have ended.

    Args:
        report: The file descriptor for the process id.
        argv: The daemon.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    daemon = os.fork()
    if daemon == 0:
        os.close(report)
        os.execv(argv[0], argv)  # noqa: S606 - becomes the daemon
    os.write(report, f"{daemon}\n".encode())
    os.close(report)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ends with the last of its children
    with suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
