"""Executables in place of a scheduler's commands."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FakeCommands"]


class FakeCommands:
    """A folder at the front of PATH, with commands that a test writes.

    Args:
        folder: The folder; created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def write(self, name: str, script: str) -> None:
        """Write a command; it records its arguments."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >>"{self._calls(name)}"\n{script}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call of a command."""
        file = self._calls(name)
        return file.read_text().splitlines() if file.exists() else []

    def _calls(self, name: str) -> Path:
        return self.folder / f"{name}.calls"
