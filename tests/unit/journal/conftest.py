"""A journal for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.journal.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """An empty journal."""
    return Journal(tmp_path / "journal")
