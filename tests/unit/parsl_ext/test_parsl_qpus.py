"""What tells a memoised call on one QPU from an equal call on another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from parsl.executors import ThreadPoolExecutor
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, QPUExecutor
from parsl_ext.qpus import memo_key, qpus_of


def define(path: Path, endpoint: str) -> None:
    qpus = [
        {"name": name, "type": "ibm-quantum-system", "environment": {"QRMI_IBM_QS_ENDPOINT": at}}
        for name, at in (("a", endpoint), ("b", "https://b.example"))
    ]
    path.write_text(json.dumps({"resources": qpus}))
    path.chmod(0o600)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "qrmi_config.json"
    define(path, "https://a.example")
    monkeypatch.setenv("QPU_CONFIG", str(path))
    return path


def executor(qpu: str | None) -> QPUExecutor:
    launcher: dict[str, Any] = {} if qpu is None else {"launcher": LeaseLauncher(qpu=qpu)}
    return QPUExecutor(label=f"on {qpu}", provider=LocalProvider(**launcher))


def test_a_key_names_the_qpu_of_the_executor_or_that_of_the_app() -> None:
    a, b = executor("a"), executor("b")

    assert memo_key([a]) == memo_key([executor("a")]) == memo_key([b], "a")
    assert memo_key([a]).startswith("a ")
    assert memo_key([a]) != memo_key([b])


def test_a_call_that_may_run_on_either_of_two_qpus_gets_a_result_of_either() -> None:
    a, b = executor("a"), executor("b")

    assert memo_key([a, b]) == memo_key([b, a, b])
    assert len({memo_key([a, b]), memo_key([a]), memo_key([b])}) == 3


def test_an_emulated_qpu_with_the_name_of_a_real_one_is_another(config: Path) -> None:
    real = memo_key([executor("a")])
    define(config, "http://127.0.0.1:1")

    assert memo_key([executor("a")]) != real


def test_a_qpu_that_is_defined_only_in_the_blocks_goes_by_its_name() -> None:
    assert memo_key([executor("spank")]) == "spank"


def test_a_call_on_an_unknown_qpu_is_not_memoised(caplog: pytest.LogCaptureFixture) -> None:
    unknown = ThreadPoolExecutor(label="threads")

    assert memo_key([unknown]) != memo_key([unknown])
    assert "executor 'threads' is not memoised" in caplog.text


@pytest.mark.parametrize(
    ("named", "fallback"),
    [(["a|emulated:fez"], ""), (["a", "emulated:fez"], ""), (["a"], "b|emulated:fez")],
)
def test_a_call_that_may_run_on_an_emulated_qpu_instead_is_not_memoised(
    monkeypatch: pytest.MonkeyPatch, named: list[str], fallback: str
) -> None:
    """Blocks inherit `$QPU_FALLBACK`."""
    monkeypatch.setenv("QPU_FALLBACK", fallback)
    executors = [executor(each) for each in named]

    assert memo_key(executors) != memo_key(executors)


def test_a_call_that_runs_on_emulated_qpus_alone_is_memoised() -> None:
    executors = [executor("emulated:fez"), executor("emulated:torino")]

    assert memo_key(executors) == memo_key(executors)


def test_workers_in_this_job_use_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRMI_JOB_QPU_RESOURCES", "a,b")
    monkeypatch.setenv("QRMI_JOB_QPU_TYPES", "ibm-quantum-system,ibm-quantum-system")
    monkeypatch.setenv("b_QRMI_JOB_ACQUISITION_TOKEN", "t")

    assert qpus_of(ThreadPoolExecutor()) == ("b",)
