"""Start-up cost: no SDK, no engine and no web server is imported before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qrmi_workflows.cli import _COMMANDS, qpu

SLOW = {"qrmi", "qiskit", "pulser", "parsl", "snakemake", "numpy", "starlette", "uvicorn", "rich"}
SLOW |= {"importlib.metadata", "jsonschema", "psutil", "tenacity"}
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
    """Run a program in an interpreter of its own; return the modules that it has imported.

    Its coverage is not measured, because that imports modules, too.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", program + REPORT],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


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


def test_the_help_imports_no_command():
    imported = imported_by(MAIN.format(argv=["--help"]))

    layers = {name for name in imported if name.startswith("qrmi_workflows.")}
    assert layers - {"qrmi_workflows.errors"} == {
        "qrmi_workflows.cli",
        "qrmi_workflows.cli.types",
        "qrmi_workflows.config",
        "qrmi_workflows.config.variables",
        "qrmi_workflows.state",
        "qrmi_workflows.state.signals",
    }


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        (
            "lease.open",
            {"socket", "hashlib", "concurrent.futures.thread", "qrmi_workflows.results"}
            | {"qrmi_workflows.lease.stage", "qrmi_workflows.journal"},
        ),
        ("tasks.pool", {f"qrmi_workflows.tasks.{n}" for n in ("offers", "coalesced")}),
    ],
)
def test_what_only_some_processes_need_is_not_imported_by_all(module, spared):
    imported = imported_by(f"import qrmi_workflows.{module}")

    assert f"qrmi_workflows.{module}" in imported
    assert imported & spared == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_describes_a_command_as_its_own_help_begins(name):
    command = qpu.get_command(None, name)

    assert _COMMANDS[name][1] == command.get_short_help_str(limit=200)


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
