"""The job's environment contract, compared with upstream's reader of it."""

from __future__ import annotations

import os
import socket

import pytest
import qrmi

from qrmi_workflows.config.job import (
    JobQPU,
    describe_job,
    drop_leases,
    read_job,
    without_leases,
    write_job,
)
from qrmi_workflows.config.variables import QPU_LEASE_USAGE, QPU_STEP
from qrmi_workflows.errors import ConfigError

FEZ = JobQPU(
    name="ibm_fez",
    type="ibm-quantum-compute-service",
    environment={"QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1"},
    token="session-1",
)
FRESNEL = JobQPU(name="FRESNEL", type="pasqal-cloud", environment={}, token="t2")
CAN1 = JobQPU(name="FRESNEL_CAN1", type="pasqal-cloud", environment={"QRMI_X": "1"}, token="t3")


def test_written_variables_read_back_as_the_same_qpus():
    written = write_job([FEZ, FRESNEL, CAN1])

    assert read_job(written) == {"ibm_fez": FEZ, "FRESNEL": FRESNEL, "FRESNEL_CAN1": CAN1}


def test_upstreams_reader_understands_written_variables(monkeypatch):
    for name, value in write_job([FEZ, FRESNEL]).items():
        monkeypatch.setenv(name, value)

    assert qrmi.get_job_qpu_resources_and_types() == (
        ["ibm_fez", "FRESNEL"],
        ["ibm-quantum-compute-service", "pasqal-cloud"],
    )


def test_the_variables_are_those_of_upstreams_contract():
    assert write_job([FEZ]) == {
        "QRMI_LIST_DELIMITER": ",",
        "QRMI_JOB_QPU_RESOURCES": "ibm_fez",
        "QRMI_JOB_QPU_TYPES": "ibm-quantum-compute-service",
        "SLURM_JOB_QPU_RESOURCES": "ibm_fez",
        "SLURM_JOB_QPU_TYPES": "ibm-quantum-compute-service",
        "ibm_fez_QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1",
        "ibm_fez_QRMI_JOB_ACQUISITION_TOKEN": "session-1",
    }


def test_a_reader_of_the_legacy_names_sees_the_qpus_of_this_lease_and_not_of_an_outer_one():
    outer = write_job([CAN1])
    inner = outer | write_job([FEZ, FRESNEL])

    legacy = {name: value for name, value in inner.items() if not name.startswith("QRMI_JOB_QPU")}
    assert list(read_job(legacy)) == ["ibm_fez", "FRESNEL"]


def test_legacy_names_are_read_too():
    legacy = {
        "SLURM_JOB_QPU_RESOURCES": "a;b",
        "SLURM_JOB_QPU_TYPES": "pasqal-cloud;pasqal-cloud",
        "QRMI_LIST_DELIMITER": ";",
        "b_QRMI_JOB_ACQUISITION_TOKEN": "t",
    }

    assert [(qpu.name, qpu.token) for qpu in read_job(legacy).values()] == [("a", None), ("b", "t")]


def test_an_environment_outside_a_job_has_no_qpus():
    assert read_job({}) == {}


def test_an_empty_delimiter_is_the_comma():
    written = write_job([FEZ, FRESNEL]) | {"QRMI_LIST_DELIMITER": ""}

    assert set(read_job(written)) == {"ibm_fez", "FRESNEL"}


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ConfigError, match="names 2 QPUs"):
        read_job({"QRMI_JOB_QPU_RESOURCES": "a,b", "QRMI_JOB_QPU_TYPES": "pasqal-cloud"})


def test_credentials_and_tokens_stay_out_of_the_repr():
    assert "127.0.0.1" not in repr(FEZ)
    assert "session-1" not in repr(FEZ)


def test_a_job_is_described_by_its_id_and_its_user():
    assert describe_job("17", {}) == {"QRMI_JOB_ID": "17", "QRMI_JOB_UID": str(os.getuid())}


def test_what_the_site_says_of_a_job_is_kept():
    site = {"QRMI_JOB_ID": "9", "QRMI_JOB_UID": "54321"}

    assert describe_job("17", site) == site


def test_outside_a_job_the_id_names_the_process():
    assert describe_job(None, {})["QRMI_JOB_ID"] == f"{socket.gethostname()}.{os.getpid()}"


def test_another_job_inherits_no_lease_of_this_one():
    unheld = JobQPU(name="felis", type="alice-bob-felis", environment={"QRMI_Y": "2"}, token=None)
    job = {"QRMI_JOB_ID": "7", "QRMI_JOB_UID": "1000"}
    stage = {QPU_STEP: "mine", QPU_LEASE_USAGE: "/home/me/usage"}
    here = {"HOME": "/home/me", **job, **stage}

    assert without_leases({**here, **write_job([FEZ, CAN1])}) == {"HOME": "/home/me"}
    assert without_leases({**here, **write_job([FEZ, unheld])}) == {
        "HOME": "/home/me",
        **write_job([unheld]),
    }
    assert without_leases(here) == {"HOME": "/home/me", **stage}, "set by the user"
    environ = {**here, **write_job([FEZ, unheld])}
    drop_leases(environ)
    assert environ == {"HOME": "/home/me", **write_job([unheld])}


@pytest.mark.parametrize(
    ("environment", "same"),
    [
        ({"QRMI_IBM_QS_ENDPOINT": "https://a.example/"}, True),
        ({"QRMI_IBM_QS_ENDPOINT": "https://a.example", "QRMI_IBM_QS_IAM_APIKEY": "new"}, True),
        ({"QRMI_IBM_QS_ENDPOINT": "https://a.example", "QRMI_IBM_QS_IAM_ENDPOINT": "new"}, True),
        ({"QRMI_IBM_QS_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({}, False),
    ],
)
def test_the_endpoint_tells_two_qpus_of_one_name_apart(environment, same):
    qpu, other = (
        JobQPU(name="a", type="ibm-quantum-system", environment=each, token=None)
        for each in ({"QRMI_IBM_QS_ENDPOINT": "https://a.example"}, environment)
    )

    assert (qpu.identity == other.identity) is same


def test_the_type_tells_two_qpus_of_one_name_apart():
    qpu, other = (
        JobQPU(name="a", type=type_, environment={}, token=None)
        for type_ in ("pasqal-cloud", "pasqal-local")
    )

    assert qpu.identity != other.identity
