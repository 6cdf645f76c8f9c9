"""A sandbox whose QPUs a test describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrmi_workflows.sandbox import Sandbox

__all__ = ["emulated_site"]


@contextmanager
def emulated_site(folder: Path, settings: str) -> Iterator[Sandbox]:
    """Bring a sandbox up in a folder, with the emulator's settings (TOML)."""
    (folder / "emulator.toml").write_text(settings)
    box = Sandbox(folder / "box")
    box.up(config=folder / "emulator.toml")
    try:
        yield box
    finally:
        box.down(grace=0)
