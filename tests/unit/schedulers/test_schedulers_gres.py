"""Slurm's generic resources, parsed from recorded output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy, load_site_policy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import (
    JobGrants,
    gres_of_job,
    make_grants,
    offered_gres,
    require_gres,
    units_of,
)

FEZ = QPUPolicy(name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez")
OPTION = QPUPolicy(name="a", qpu_option=True)


SITE = SitePolicy(path=Path("site.toml"), qpus={"ibm_fez": FEZ, "a": OPTION})


def request(qpu: str, count: int = 1) -> QPURequest:
    return QPURequest(qpu=qpu, count=count)


def at_site_with(gres: str) -> SitePolicy:
    """A site that grants ibm_fez by this GRES."""
    return replace(SITE, qpus={"ibm_fez": replace(FEZ, gres=gres)})


def test_the_gres_of_all_nodes_are_read():
    output = "qpu:ibm_fez:1(S:0),qpu:FRESNEL:1\ngpu:2,qpu:ibm_fez:5,tape\nmem:4G\n(null)\n"

    assert offered_gres(output) == {
        "qpu": 5,
        "qpu:ibm_fez": 5,
        "qpu:FRESNEL": 1,
        "gpu": 2,
        "tape": 1,
        "mem": 1,
    }


def test_of_a_gres_with_types_a_job_can_request_any():
    """Slurm chooses the type, and no job gets more than one node has of all types."""
    offered = offered_gres("qpu:ibm_fez:1,qpu:FRESNEL:1\nqpu:ibm_fez:1\n")

    require_gres(request("ibm_fez", 2), at_site_with("qpu"), offered)
    with pytest.raises(RequestError, match="no node of this Slurm has more than 2 of GRES 'qpu'"):
        require_gres(request("ibm_fez", 3), at_site_with("qpu"), offered)


def test_a_gres_that_no_node_has_is_refused_as_a_gres(tmp_path):
    require_gres(request("ibm_fez"), SITE, {"qpu:IBM_FEZ": 1})  # Slurm ignores case
    with pytest.raises(
        RequestError, match=r"no node of this Slurm has GRES 'qpu:ibm_fez',.* have: gpu, qpu:a\. "
    ):
        require_gres(request("ibm_fez"), SITE, {"qpu:a": 1, "gpu": 1})
    with pytest.raises(RequestError, match=r"^(?!.*mean).*GRES 'no:ibm_fez',.* have: qpu:ibm_fez"):
        require_gres(request("ibm_fez"), at_site_with("no:ibm_fez"), {"qpu:ibm_fez": 1})
    (tmp_path / "site.toml").write_text('[defaults]\ngres = "qpu:{qpu}"\n[qpus.ibm_fez]\n')
    with pytest.raises(RequestError, match=r"nodes have: none\. Correct `gres` in .*/site.toml:2,"):
        require_gres(request("ibm_fez"), load_site_policy(tmp_path / "site.toml"), {})


def test_more_units_of_a_qpu_than_any_node_has_are_refused():
    require_gres(request("ibm_fez", 5), SITE, {"qpu:ibm_fez": 5})
    with pytest.raises(RequestError, match=r"no node of this Slurm has more than 5 .* fewer"):
        require_gres(request("ibm_fez", 6), SITE, {"qpu:IBM_fez": 5})


def test_a_qpu_that_no_gres_counts_has_no_limit_here():
    assert units_of(OPTION, {"gpu": 1}) is None
    require_gres(request("a", 6), SITE, {"gpu": 1})


def test_the_policy_may_say_how_many_units_a_job_can_request():
    offered = {"qpu:ibm_fez": 3}

    assert units_of(FEZ, offered) == 3
    assert units_of(replace(FEZ, lanes=5, exclusive=True), offered) == 1
    assert units_of(replace(OPTION, lanes=5, exclusive=False), offered) == 5


@pytest.mark.parametrize("written", ["gres:qpu:ibm_fez:1", "gres/qpu:ibm_fez:1"])
def test_the_gres_of_a_job_is_read_as_old_and_new_versions_write_it(written):
    output = f"JobId=3 JobName=x\n   JobState=RUNNING Reason=None\n   TresPerNode={written}\n"

    assert gres_of_job(output + "   Licenses=qpu_ibm_fez:1 Network=(null)") == {
        "state": "RUNNING",
        "gres": "qpu:ibm_fez:1",
        "licences": "qpu_ibm_fez:1",
    }


def grants(gres: str = "", licences: str = "") -> JobGrants:
    """What a job holds that was granted these."""
    return make_grants([gres], [licences])


def test_a_job_must_hold_both_the_gres_and_the_licence_of_a_qpu():
    """With the GRES alone, a job on another node might hold the QPU as well."""
    assert grants("qpu:ibm_fez:1", "qpu_ibm_fez:1").hold(FEZ)
    assert not grants("qpu:ibm_fez:1").hold(FEZ)
    assert not grants(licences="qpu_ibm_fez:1").hold(FEZ)


def test_a_job_holds_a_licence_that_was_written_without_a_count():
    held = grants("gpu:2,qpu:IBM_FEZ:2(S:0,1)", "matlab@lmgr:2,qpu_ibm_fez")

    assert held.hold(FEZ)
    assert held.gres == {"gpu", "qpu:ibm_fez"}


def test_a_job_holds_a_licence_of_another_server():
    assert grants("qpu:ibm_fez:1", "qpu_ibm_fez@slurmdb:1").hold(FEZ)


def test_a_gres_without_a_type_is_that_of_the_only_qpu():
    untyped = QPUPolicy(name="a", gres="qpu")

    assert grants("qpu:1").hold(untyped)
    assert grants("qpu:ibm_fez:1").hold(untyped)
    assert grants("qpu:1", "qpu_ibm_fez").hold(FEZ)
    assert not grants("qpux:1").hold(untyped)


def test_of_a_count_of_zero_a_job_holds_nothing():
    assert not grants("qpu:ibm_fez:0,qpu:FRESNEL:1", "qpu_ibm_fez:1").hold(FEZ)


def test_a_qpu_that_is_granted_by_the_sites_plugin_alone_is_not_refused():
    assert grants().hold(OPTION)


def test_the_units_that_a_job_holds_are_counted():
    untyped = QPUPolicy(name="a", gres="qpu")

    assert grants("qpu:ibm_fez:3(S:0)", "qpu_ibm_fez:3").units(FEZ) == 3
    assert grants("qpu:ibm_fez:1", "qpu_ibm_fez@slurmdb:2").units(FEZ) == 1
    assert grants("qpu:ibm_fez:2,gpu:4").units(untyped) == 2
    assert grants("gpu:4", "matlab:7").units(OPTION) == 1
