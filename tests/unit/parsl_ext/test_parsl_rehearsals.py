"""Blocks with emulated QPUs, without any site: what they need, and how calls are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from parsl.executors import ThreadPoolExecutor
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider, QPUStage, qpu_config
from parsl_ext.qpus import memo_key, types_of
from qrmi_workflows.config.emulated import EMULATED_LANES
from qrmi_workflows.errors import ConfigError, RequestError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("QPU_SITE", "QPU_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_block_asks_slurm_for_nothing() -> None:
    provider = QPUSlurmProvider(qpu="emulated:fez+emulated:garnet")

    provider.check()
    assert provider._qpu_options() == []
    assert [policy.lanes for policy in provider.qpu_policies] == [EMULATED_LANES] * 2
    with pytest.raises(ConfigError, match=r"no site\.toml"):
        QPUSlurmProvider(qpu="emulated:fez+ibm_fez")


@pytest.mark.parametrize("local", [False, True])
def test_a_configuration_needs_nothing_else(local: bool) -> None:
    (executor,) = qpu_config("emulated:fez", local=local).executors

    assert executor.provider.launcher.qpu == "emulated:fez"
    assert isinstance(executor.provider, LocalProvider) is local


@pytest.mark.parametrize("local", [False, True])
def test_an_unknown_model_is_refused_when_the_configuration_is_made(local: bool) -> None:
    with pytest.raises(RequestError, match=r"Did you mean 'emulated:fez'\?"):
        qpu_config("emulated:ibm_fez", local=local)


def test_what_several_nodes_or_several_jobs_would_share_is_refused() -> None:
    with pytest.raises(RequestError, match="nodes_per_block=2 with QPU 'emulated:fez': must be 1"):
        QPUSlurmProvider(qpu="emulated:fez", nodes_per_block=2)
    with pytest.raises(RequestError, match="private to its job"):
        QPUSlurmProvider(qpu="emulated:fez", stage="vqe")
    with pytest.raises(RequestError, match="private to its job"):
        QPUSlurmProvider(qpu=None, stage=QPUStage("vqe", qpu="emulated:fez"))


def test_calls_on_different_qpus_are_different_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The key says emulated, and is the same in another run of the program."""
    config = tmp_path / "qrmi_config.json"
    config.write_text(
        '{"resources": [{"name": "ibm_fez", "type": "ibm-quantum-compute-service", "environment":'
        ' {"QRMI_IBM_QCS_ENDPOINT": "https://vendor.example"}}]}'
    )
    config.chmod(0o600)
    monkeypatch.setenv("QPU_CONFIG", str(config))

    def key(qpu: str) -> str:
        provider = LocalProvider(launcher=LeaseLauncher(qpu=qpu))
        return memo_key([QPUExecutor(provider=provider)])

    names = ["ibm_fez", "emulated:fez", "emulated:fez:noisy", "emulated:torino"]
    keys = {name: key(name) for name in names}

    assert len(set(keys.values())) == len(names)
    assert keys["emulated:fez"].startswith("emulated:fez ")
    assert key("emulated:fez") == keys["emulated:fez"]
    assert memo_key([ThreadPoolExecutor()], "emulated:fez") == keys["emulated:fez"]


def test_a_payload_is_checked_for_the_type_of_the_model() -> None:
    assert types_of([], "emulated:FRESNEL", run="r") == {"pasqal-cloud"}
