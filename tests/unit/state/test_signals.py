"""Signals raise nothing while a lock is being taken or released."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The handlers are called at each line of the import system and of `threading` in turn, as if the
# signal had arrived there. No thread may then wait for a lock that nobody releases.
AT_EACH_LINE = """
import importlib, signal, sys, threading, time
from qrmi_workflows.lease import at_exit
from qrmi_workflows.state.signals import handle_ctrl_c

handle_ctrl_c()
at_exit.exit_on_sigterm()
number = signal.{number}
handler = signal.getsignal(number)
condition = threading.Condition(threading.Lock())

def use_locks():
    try:
        import this_module_is_missing
    except ImportError:
        pass
    with condition:
        condition.notify_all()

def interrupt_at(line):
    at_exit._last_sigterm = float("-inf")  # otherwise it is a repeat, which is ignored
    seen = 0
    def trace(frame, event, _argument):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("importlib._bootstrap>", "threading.py")):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                handler(number, frame)
        return trace
    sys.settrace(trace)
    try:
        use_locks()
        if seen >= line:
            time.sleep(20)  # a postponed signal comes again
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        sys.settrace(None)
    return seen >= line

line = 1
while interrupt_at(line):
    other = threading.Thread(target=use_locks, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive(), f"locked for ever after line {{line}}"
    line += 1
assert line > 50, f"only {{line}} lines were seen"
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_no_lock_stays_taken_wherever_a_signal_arrives(number):
    done = subprocess.run(
        [sys.executable, "-c", AT_EACH_LINE.format(number=number)],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr


def test_a_program_that_handles_ctrl_c_itself_keeps_its_handler():
    program = """
import signal
from qrmi_workflows.state.signals import handle_ctrl_c, is_ctrl_c_default
signal.signal(signal.SIGINT, own := lambda *_: None)
handle_ctrl_c()
assert signal.getsignal(signal.SIGINT) is own
assert not is_ctrl_c_default()
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_a_program_that_runs_in_an_import_is_interrupted(tmp_path):
    """Only the innermost call counts, or SIGTERM would never end such a program."""
    (tmp_path / "whole_program.py").write_text(
        "import os, signal, time\n"
        "from qrmi_workflows.lease.at_exit import exit_on_sigterm\n"
        "exit_on_sigterm()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )

    done = subprocess.run([sys.executable, "-c", "import whole_program"], cwd=tmp_path, timeout=50)

    assert done.returncode == 143
