"""`qpu_config`, and the page that shows the same configuration in parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pages import blocks
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors import ThreadPoolExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, qpu_config
from qrmi_workflows.errors import RequestError

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


@pytest.mark.parametrize("local", [False, True])
def test_a_configuration_takes_what_parsls_own_takes_and_what_the_provider_takes(
    local: bool,
) -> None:
    made = qpu_config(
        "ibm_fez",
        local=local,
        strategy="htex_auto_scale",
        strategy_period=2,
        exit_mode="wait",
        retries=5,
        walltime="00:30:00",
        partition="quantum",
        status_polling_interval=1,
        init_blocks=0,
        launcher=SrunLauncher(),
    )

    (executor,) = made.executors
    assert (made.strategy, made.strategy_period, made.exit_mode) == ("htex_auto_scale", 2, "wait")
    assert made.retries == 5
    assert executor.provider.init_blocks == 0
    assert isinstance(executor.provider, LocalProvider) is local
    if local:
        assert executor.provider.launcher.qpu == "ibm_fez"
        assert isinstance(executor.provider.launcher.inner, SrunLauncher)


def test_the_idle_time_of_the_qpu_is_not_that_of_other_executors() -> None:
    others = [ThreadPoolExecutor()]

    default = qpu_config("ibm_fez", executors=others)
    chosen = qpu_config("ibm_fez", executors=others, max_idletime=7)
    of_the_qpu = qpu_config("ibm_fez", executors=others, max_idletime=7, qpu_idletime=0)
    unscaled = qpu_config("ibm_fez", strategy="none")

    assert (default.max_idletime, default.executors[0].max_idletime) == (120, 30)
    assert (chosen.max_idletime, chosen.executors[0].max_idletime) == (7, 7)
    assert (of_the_qpu.max_idletime, of_the_qpu.executors[0].max_idletime) == (7, 0)
    assert unscaled.executors[0].max_idletime is None


def test_an_idle_time_of_zero_is_not_taken_for_the_default() -> None:
    assert qpu_config("ibm_fez", max_idletime=0).executors[0].max_idletime == 0


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_an_idle_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(RequestError, match=r"max_idletime=.*must be zero or more seconds"):
        qpu_config("ibm_fez", max_idletime=seconds)


def test_the_launcher_of_a_local_block_keeps_its_options() -> None:
    made = qpu_config("ibm_fez", local=True, launcher=LeaseLauncher(on_stop="cancel"))

    assert made.executors[0].provider.launcher.on_stop == "cancel"
    assert made.executors[0].provider.launcher.qpu == "ibm_fez"


@pytest.mark.parametrize("local", [False, True])
def test_a_launcher_that_leases_another_qpu_is_refused(local: bool) -> None:
    with pytest.raises(RequestError, match="'ibm_fez', but their launcher leases 'ibm_b'"):
        qpu_config("ibm_fez", local=local, launcher=LeaseLauncher(qpu="ibm_b"))


@pytest.mark.parametrize("local", [False, True])
def test_a_wrong_argument_is_refused(local: bool) -> None:
    with pytest.raises(RequestError, match=r"no argument 'wall_time'.*Did you mean 'walltime'"):
        qpu_config("ibm_fez", local=local, wall_time="00:30:00")
    with pytest.raises(RequestError, match="both `checkpoint` and `memoizer`"):
        qpu_config("ibm_fez", local=local, checkpoint=True, memoizer=BasicMemoizer())


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
