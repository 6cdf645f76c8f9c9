"""`qpu_config`, and the page that shows the same configuration in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import blocks

from parsl_ext import qpu_config

PAGE = Path(__file__).parents[3] / "docs" / "parsl.md"


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text('[qpus.ibm_fez]\ngres = "qpu:ibm_fez"\nlanes = 5\n')
    qpu = {"name": "ibm_fez", "type": "ibm-quantum-compute-service", "environment": {}}
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": [qpu]}))
    (tmp_path / "qrmi_config.json").chmod(0o600)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))


@pytest.mark.parametrize("local", [False, True])
def test_arguments_are_passed_on_to_the_executor(local: bool) -> None:
    options = {"lanes": 3, "max_workers_per_node": 7, "address": "127.0.0.2"}
    (executor,) = qpu_config("ibm_fez", local=local, **options).executors
    assert {name: getattr(executor, name) for name in options} == options


def test_the_page_builds_the_same_configuration_from_parts() -> None:
    snippets = blocks(PAGE, "python")
    names: dict[str, Any] = {}
    exec(snippets[0], names)  # noqa: S102 - the first and the last snippet of the page
    exec(snippets[-1], names)  # noqa: S102
    ready, in_parts = names["config"], names["in_parts"]
    assert repr(in_parts.executors) == repr(ready.executors)
    assert in_parts.memoizer.checkpoint_mode == ready.memoizer.checkpoint_mode
    for name in ("retries", "retry_handler", "max_idletime"):
        assert getattr(in_parts, name) == getattr(ready, name)
