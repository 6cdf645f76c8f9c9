"""Fake commands of a scheduler, first on PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_commands import FakeCommands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    """Commands that a test writes, found before any installed ones."""
    fakes = FakeCommands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fakes.folder}{os.pathsep}{os.environ['PATH']}")
    return fakes
