"""Runs programs that know only QRMI under `qpu lease exec`, which gives them all that they need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Under", "qpu_command", "run_under_lease", "script"]

Under = Callable[..., str]
"""Runs a command under a lease of a QPU, and returns what it prints."""


def run_under_lease(qpu: str, *command: object) -> str:
    """Run a command under a lease of a QPU, and return what it prints."""
    return qpu_command("lease", "exec", "--qpu", qpu, "--", *command)


def qpu_command(*arguments: object) -> str:
    """Run `qpu`, which must succeed, and return what it prints."""
    programs = Path(sys.executable).parent
    words = [
        programs / str(word) if word in ("task_runner", "python") else word for word in arguments
    ]
    ended = subprocess.run(
        [programs / "qpu", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def script(text: str, *arguments: object) -> tuple[object, ...]:
    """Write a program into this folder, and return the command that runs it."""
    Path("program.py").write_text(text)
    return ("python", "program.py", *arguments)
