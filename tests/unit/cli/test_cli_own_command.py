"""Which commands of `qpu lease exec` are a `qpu run` of this installation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qrmi_workflows.cli.own_command import own_arguments

RUN = ("run", "payload", "-o", "result")
SCRIPT = "#!{}\n# -*- coding: utf-8 -*-\nimport sys\nfrom qrmi_workflows.cli import main\nmain()\n"


def write_script(folder: Path, text: str, name: str = "qpu") -> Path:
    """Write a script as pip does."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_script_of_this_interpreter_is_ours(tmp_path: Path, monkeypatch):
    """By its path, or by its name if PATH leads to it."""
    script = write_script(tmp_path, SCRIPT.format(sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert own_arguments([str(script), *RUN]) == list(RUN)
    assert own_arguments(["qpu", *RUN]) == list(RUN)


def test_the_module_in_this_interpreter_is_ours():
    assert own_arguments([sys.executable, "-m", "qrmi_workflows", *RUN]) == list(RUN)


@pytest.mark.parametrize(
    "command",
    [
        ("no-such-program", *RUN),
        ("sh", "-c", "qpu run"),
        (sys.executable, "-m", "other", *RUN),
        (sys.executable, "-c", "pass"),
        (sys.executable, "-m", "qrmi_workflows", "list"),
        (sys.executable, "-m", "qrmi_workflows"),
        (sys.executable, "-X", "dev", "-m", "qrmi_workflows", *RUN),
    ],
)
def test_another_command_is_not(command):
    assert own_arguments(command) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qpu", "#!/bin/sh\nexec other\n"),
        ("qpu", SCRIPT.format("/usr/bin/env")),
        ("qpu", f"#!{sys.executable}\nfrom other import main\n"),
        ("qpu-2", SCRIPT.format(sys.executable)),
    ],
)
def test_a_script_of_another_interpreter_or_package_is_not(tmp_path: Path, name, text):
    assert own_arguments([str(write_script(tmp_path, text, name)), *RUN]) is None


def test_a_link_in_another_environment_to_the_same_binary_is_not(tmp_path: Path):
    """Another environment may have another release of this package."""
    (tmp_path / "python").symlink_to(Path(sys.executable).resolve())
    script = write_script(tmp_path, SCRIPT.format(tmp_path / "python"))

    assert own_arguments([str(tmp_path / "python"), "-m", "qrmi_workflows", *RUN]) is None
    assert own_arguments([str(script), *RUN]) is None
