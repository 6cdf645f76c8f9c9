"""Slurm's generic resources, parsed from recorded output."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import (
    JobGrants,
    grants_of_job,
    gres_of_job,
    offered_gres,
    require_count,
    require_gres,
    units_of,
)

FEZ = QPUPolicy(name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez")
OPTION = QPUPolicy(name="a", qpu_option=True)


def test_the_gres_of_all_nodes_are_read():
    output = "qpu:ibm_fez:1(S:0),qpu:FRESNEL:1\ngpu:2,qpu:ibm_fez:5,tape\nmem:4G\n(null)\n"

    assert offered_gres(output) == {
        "qpu:ibm_fez": 5,
        "qpu:FRESNEL": 1,
        "gpu": 2,
        "tape": 1,
        "mem": 1,
    }


def test_a_gres_that_no_node_has_is_refused_as_a_gres():
    require_gres(FEZ, {"qpu:IBM_FEZ"})  # Slurm ignores case
    with pytest.raises(
        RequestError, match=r"no node of this Slurm has GRES 'qpu:ibm_fez',.* have: gpu, qpu:a\. "
    ):
        require_gres(FEZ, {"qpu:a", "gpu", "(null)"})
    with pytest.raises(RequestError, match=r"^(?!.*mean).*GRES 'no:ibm_fez',.* have: qpu:ibm_fez"):
        require_gres(replace(FEZ, gres="no:ibm_fez"), {"qpu:ibm_fez"})
    with pytest.raises(RequestError, match=r"the nodes have: none\. Correct `gres` in site\.toml"):
        require_gres(FEZ, {"(null)"})


def test_more_units_of_a_qpu_than_any_node_has_are_refused():
    require_count(QPURequest(qpu="ibm_fez", count=5), FEZ, {"qpu:ibm_fez": 5})
    with pytest.raises(RequestError, match=r"no node of this Slurm has more than 5 .* fewer"):
        require_count(QPURequest(qpu="ibm_fez", count=6), FEZ, {"qpu:IBM_fez": 5})


def test_a_qpu_that_no_gres_counts_has_no_limit_here():
    assert units_of(OPTION, {"gpu": 1}) is None
    require_count(QPURequest(qpu="a", count=6), OPTION, {"gpu": 1})


@pytest.mark.parametrize("written", ["gres:qpu:ibm_fez:1", "gres/qpu:ibm_fez:1"])
def test_the_gres_of_a_job_is_read_as_old_and_new_versions_write_it(written):
    output = f"JobId=3 JobName=x\n   JobState=RUNNING Reason=None\n   TresPerNode={written}\n"

    assert gres_of_job(output + "   Licenses=qpu_ibm_fez:1 Network=(null)") == {
        "state": "RUNNING",
        "gres": "qpu:ibm_fez:1",
        "licences": "qpu_ibm_fez:1",
    }


def grants(gres: str = "(null)", licences: str = "(null)", **more: str) -> JobGrants:
    """What a job holds whose `scontrol --details show job` has these fields."""
    lines = [
        "JobId=3 JobName=x",
        f"   JOB_GRES={gres}",
        f"   OverSubscribe=NO Exclusive=NO Contiguous=0 Licenses={licences} Network=(null)",
        *(f"   {name}={value}" for name, value in more.items()),
    ]
    held = grants_of_job("\n".join(lines))
    assert held is not None
    return held


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


def test_of_alternative_licences_a_job_holds_the_allocated_one():
    """Recorded from Slurm 26.05."""
    shown = grants("qpu:ibm_fez:1", "qpu_FRESNEL|qpu_ibm_fez LicensesAlloc=qpu_ibm_fez:1")

    assert shown.licences == {"qpu_ibm_fez"}


def test_where_slurm_shows_no_allocated_gres_those_that_were_requested_count():
    """`select/linear` allocates nodes, and shows no `JOB_GRES`."""
    shown = (
        "JobId=3 JobName=x\n   TresPerNode=gres:gpu:1,gres:qpu:a:1\n   TresPerJob=gres/qpu:b:1\n"
    )

    held = grants_of_job(shown)

    assert held is not None
    assert held.gres == {"gpu", "qpu:a", "qpu:b"}


def test_the_components_of_a_heterogeneous_job_hold_their_grants_together():
    job = "JobId=3 HetJobId=3 HetJobOffset=0 JobName=x\n   JOB_GRES=(null)\n\n"

    held = grants_of_job(job + job.replace("(null)", "qpu:a:1"))

    assert held is not None
    assert held.gres == {"qpu:a"}


def test_a_qpu_that_is_granted_by_the_sites_plugin_alone_is_not_refused():
    assert grants().hold(OPTION)
