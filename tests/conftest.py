"""Fixtures for all tiers: a state folder, and one sandbox for the tests that need Slurm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrmi_workflows.sandbox import Sandbox


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the journal, the leases and the cache of the tests apart from the user's own."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPU_STATE", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def same_environ(state: Path) -> Iterator[None]:
    """Undo what a test, or a command that it runs in this process, changes in the environment."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Start a sandbox: a real Slurm with two nodes, and the emulator's default QPUs."""
    box = Sandbox(tmp_path_factory.mktemp("sandbox"))
    box.up()
    yield box
    box.down()


@pytest.fixture
def in_sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Point this process's environment to the sandbox, and return it."""
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    return sandbox
