"""Requests that are refused before a QPU is acquired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.lease.open import open_lease


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A site with one QPU, which must not be acquired; takes the first line of its policy."""

    def acquire(*_: object, **__: object) -> HeldQPU:
        pytest.fail("the QPU was acquired")

    def write(first_line: str) -> None:
        (tmp_path / "site.toml").write_text(f"{first_line}\n[qpus.ibm_fez]\n")

    qpu = {"name": "ibm_fez", "type": "ibm-quantum-system"}
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": [qpu]}))
    monkeypatch.setattr(HeldQPU, "acquire", acquire)
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return write


def test_a_scheduler_that_is_not_installed_is_refused_before_the_qpu_is_acquired(site):
    site('scheduler = "pbs"')

    with pytest.raises(ConfigError, match="unknown scheduler 'pbs'"):
        open_lease("ibm_fez")


def test_a_malformed_killwait_is_refused_before_the_qpu_is_acquired(site, monkeypatch):
    site("")
    monkeypatch.setenv("QPU_KILL_WAIT", "soon")

    with pytest.raises(ConfigError, match="QPU_KILL_WAIT"):
        open_lease("ibm_fez")
