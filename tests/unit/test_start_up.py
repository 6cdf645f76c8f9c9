"""Start-up cost: no SDK, no engine and no web server is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qrmi_workflows.cli import qpu

SLOW = {"qrmi", "qiskit", "pulser", "parsl", "snakemake", "numpy", "starlette", "uvicorn", "rich"}
REPORT = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
MAIN = """
from qrmi_workflows.cli import main
try:
    main({argv!r})
except SystemExit as ended:
    assert ended.code == 0
"""
COMMANDS = tuple(qpu.list_commands(None))


def imported_by(program: str) -> set[str]:
    """Run a program in an interpreter of its own; return the packages that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", program + REPORT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "program",
    [
        "import qrmi_workflows",
        "from qrmi_workflows import *",
        "import qrmi_workflows.cli",
        MAIN.format(argv=["--help"]),
        *(MAIN.format(argv=[command, "--help"]) for command in COMMANDS),
    ],
    ids=["package", "all public names", "cli", "--help", *COMMANDS],
)
def test_only_what_is_used_is_imported(program):
    imported = imported_by(program)

    assert "qrmi_workflows" in imported
    assert imported & SLOW == set()


def test_the_check_sees_what_is_imported():
    assert imported_by("import qrmi_workflows.emulator.server") & SLOW


@pytest.mark.parametrize("argv", [["sandbox", "up"], ["emulator"]])
def test_without_the_extra_a_command_says_how_to_install_it(argv):
    program = f"import sys; sys.modules['starlette'] = None{MAIN.format(argv=argv)}"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )

    assert "qpu: the package 'starlette" in done.stderr
    assert "pip install 'qrmi-workflows[emulator]'" in done.stderr
