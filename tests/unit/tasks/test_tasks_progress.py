"""The progress of many tasks."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys

from qrmi_workflows.tasks.progress import show_progress

PROGRAM = """
from qrmi_workflows.tasks.progress import show_progress
with show_progress(3, "ibm_fez") as advance:
    for _ in range(3):
        advance()
"""


def test_without_a_terminal_the_end_is_a_log_line(caplog):
    with caplog.at_level(logging.INFO), show_progress(3, "ibm_fez") as advance:
        for _ in range(3):
            advance()

    assert [record.message for record in caplog.records] == ["ibm_fez: 3 of 3 tasks"]


def test_on_a_terminal_progress_is_a_bar_on_standard_error():
    master, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with os.fdopen(terminal, "wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stderr=stderr, stdout=subprocess.PIPE, env=environ
        )

    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.stdout == b""
    assert "ibm_fez" in shown
    assert "3/3" in shown
