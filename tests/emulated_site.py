"""A sandbox with QPUs that a test defines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrmi_workflows.sandbox import Sandbox

__all__ = ["emulated_site"]


@contextmanager
def emulated_site(folder: Path, settings: str) -> Iterator[Sandbox]:
    """Start a sandbox in a folder, with these settings of the emulator (TOML); stop it on exit."""
    (folder / "emulator.toml").write_text(settings)
    box = Sandbox(folder / "box")
    box.up(config=folder / "emulator.toml")
    try:
        yield box
    finally:
        box.down(grace=0)
