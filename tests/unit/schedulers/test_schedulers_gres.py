"""Slurm's generic resources, parsed from recorded output."""

from __future__ import annotations

import pytest

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError, UnknownQPUError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import (
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


def test_a_qpu_whose_gres_no_node_has_is_refused_with_those_that_some_node_has():
    require_gres(FEZ, {"qpu:IBM_FEZ"})  # Slurm ignores case
    with pytest.raises(
        UnknownQPUError, match=r"no node has GRES 'qpu:ibm_fez'; must be one of: a, b"
    ):
        require_gres(FEZ, {"qpu:a", "qpu:b", "gpu"})


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
