"""Which budgets limit the tasks of a lease."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qrmi_workflows.budgets.limits import Limit, write_limits
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.lease import allowances
from qrmi_workflows.lease.allowances import (
    account_members,
    chosen_budget,
    find_allowance,
    overhead_of_tasks,
    site_ledger,
)


@pytest.fixture(autouse=True)
def environ(monkeypatch, tmp_path):
    """No job, no site, and an empty state folder."""
    for name in ("SLURM_JOB_ID", "SLURM_JOB_ACCOUNT", "SLURM_CLUSTER_NAME", "QPU_BUDGET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    allowances._folder_in.cache_clear()
    allowances._members.clear()


def held(*, stage: Any = None, type_: str = "ibm-quantum-compute-service", **environment: str):
    membership = None if stage is None else SimpleNamespace(stage=stage)
    qpu = JobQPU(name="ibm_fez", type=type_, environment=environment, token=None)
    usage = Path("/leases/open/abc.usage")
    return SimpleNamespace(
        qpu=qpu, budget_of=None, membership=membership, session_mode=None, usage_path=lambda: usage
    )


def test_without_a_budget_nothing_limits_a_lease(tmp_path):
    assert find_allowance(held(), None) is None
    (tmp_path / "site.toml").write_text(f'[site]\nbudgets = "{tmp_path}"\n[qpus.ibm_fez]\n')
    allowances._folder_in.cache_clear()
    assert find_allowance(held(), None) is None, "the site has not set any"


def test_the_sites_budgets_apply_with_the_jobs_own(tmp_path, monkeypatch):
    site = Limit(scope="account", name="chem", unit="shots", amount=5)
    write_limits(tmp_path, [site])
    (tmp_path / "site.toml").write_text(f'[site]\nbudgets = "{tmp_path}"\n[qpus.ibm_fez]\n')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_ACCOUNT", "chem")

    found = find_allowance(held(), "90 s")

    assert found.folder == tmp_path
    assert found.limits() == (
        site,
        Limit(scope="job", name="17", unit="seconds", amount=90_000),
    )


def test_a_job_is_told_from_those_of_other_clusters_and_outside_of_one_a_lease_is_its_own(
    monkeypatch,
):
    assert [limit.name for limit in find_allowance(held(), "1 shot").own] == ["lease-abc"]
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    assert [limit.name for limit in find_allowance(held(), "1 shot").own] == ["17@big"]


def test_a_stage_has_a_budget_for_each_time_that_it_is_opened():
    stage = SimpleNamespace(name="vqe", id="0a1b", budget="1000 shots")
    (own,) = find_allowance(held(stage=stage), None).own
    assert (own.scope, own.name, own.amount) == ("stage", "vqe-0a1b", 1000)


@pytest.mark.parametrize("name", ["../17", "/etc", "..", "1/2", "1 2", "*"])
@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "SLURM_JOB_ACCOUNT", "SLURM_CLUSTER_NAME"])
def test_a_trick_in_the_name_of_a_job_or_account_is_refused(monkeypatch, variable, name):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(variable, name)
    if (variable, name) == ("SLURM_CLUSTER_NAME", ".."):
        return  # `17@..` is a name, and not one of a path
    with pytest.raises(ConfigError, match="Correct the name"):
        find_allowance(held(), "1 shot")


@pytest.mark.parametrize("name", ["../vqe", "a/b", "*"])
def test_a_trick_in_the_name_of_a_stage_is_refused(name):
    stage = SimpleNamespace(name=name, id="0", budget="1 s")
    with pytest.raises(ConfigError, match=r"stage .*Correct the name"):
        find_allowance(held(stage=stage), None)


def test_an_argument_replaces_the_variable(monkeypatch):
    assert chosen_budget(None) is None
    monkeypatch.setenv("QPU_BUDGET", "2 h")
    assert chosen_budget(None) == "2 h"
    assert chosen_budget("1 shot") == "1 shot"
    assert chosen_budget("") is None
    monkeypatch.setenv("QPU_BUDGET", "plenty")
    with pytest.raises(RequestError, match=r"\$QPU_BUDGET: 'plenty': must be"):
        chosen_budget(None)


def test_a_mistake_in_another_key_does_not_switch_the_budgets_off(tmp_path):
    """Nor does it stop all tasks at a site without budgets."""
    write_limits(tmp_path, [])
    policy = tmp_path / "site.toml"
    policy.write_text(f'[site]\nbudgets = "{tmp_path}"\n[qpus.ibm_fez]\nlanes = "many"\n')
    assert site_ledger() == tmp_path
    allowances._folder_in.cache_clear()
    policy.write_text('[qpus.ibm_fez]\nlanes = "many"\n')
    assert site_ledger() is None
    for broken in ("[[[", "[site]\nbudgets = 7\n[qpus.a]\n"):
        allowances._folder_in.cache_clear()
        policy.write_text(broken)
        with pytest.raises(ConfigError):
            site_ledger()


def test_a_task_of_a_dedicated_session_has_no_overhead():
    mode = "QRMI_IBM_QCS_SESSION_MODE"
    assert overhead_of_tasks(held(**{mode: "batch"})) == 2.0
    assert overhead_of_tasks(held(**{mode: "dedicated"})) == 0.0
    assert overhead_of_tasks(held(type_="pasqal-cloud")) == 0.0
    assert overhead_of_tasks(held(type_="unheard-of")) == 0.0


def test_the_scheduler_is_asked_for_members_once_in_five_minutes(monkeypatch):
    asked = []
    scheduler = SimpleNamespace(account_members=lambda name: asked.append(name) or frozenset("a"))
    monkeypatch.setattr(allowances, "this_scheduler", lambda: scheduler)
    now = [0.0]
    monkeypatch.setattr(allowances.time, "monotonic", lambda: now[0])

    for now[0] in (0.0, 299.0, 301.0):
        assert account_members("chem") == {"a"}

    assert asked == ["chem", "chem"]
