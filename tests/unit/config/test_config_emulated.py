"""The names of emulated QPUs, and how a job's environment carries such a QPU."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
import qrmi

from qrmi_workflows.config.emulated import is_emulated, loopback_variables, parse_emulated
from qrmi_workflows.config.job import (
    EMULATED,
    RESOURCE_ID,
    JobQPU,
    add_job,
    read_job,
    require_reachable,
    without_leases,
    write_job,
)
from qrmi_workflows.errors import ConfigError, RequestError

FEZ = JobQPU(
    name="emulated:fez",
    type="ibm-quantum-compute-service",
    environment={
        EMULATED: "emulated:fez",
        RESOURCE_ID: "emulated_fez",
        "QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1",
    },
    token="session-1",
)
FRESNEL = JobQPU(
    name="emulated:FRESNEL",
    type="pasqal-cloud",
    environment={
        EMULATED: "emulated:FRESNEL",
        RESOURCE_ID: "FRESNEL",
        "QRMI_PASQAL_CLOUD_BASE_URL": "http://127.0.0.1:1",
    },
    token="session-2",
)
REAL_FRESNEL = JobQPU(name="FRESNEL", type="pasqal-cloud", environment={}, token="t")


def test_a_name_says_the_model_and_the_variant():
    assert parse_emulated("emulated:fez") == ("fez", False)
    assert parse_emulated("emulated:FRESNEL:noisy") == ("FRESNEL", True)
    assert is_emulated("emulated:fez")
    assert not is_emulated("ibm_fez")
    assert not is_emulated(None)


@pytest.mark.parametrize("name", ["emulated:", "emulated:fez:", "emulated:fez:ideal", "emulated::"])
def test_another_form_is_refused_with_an_example(name):
    with pytest.raises(RequestError, match=r"must be emulated:MODEL.* For example: emulated:fez"):
        parse_emulated(name)


def test_an_emulated_qpu_survives_the_environment_of_a_job():
    assert read_job(write_job([FEZ, FRESNEL])) == {
        "emulated:fez": FEZ,
        "emulated:FRESNEL": FRESNEL,
    }


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_no_shell_drops_its_variables(shell):
    """Debian's sh drops variables whose names have colons."""
    path = {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run(
        [shell, "-c", "env"],
        env=write_job([FEZ]) | path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert read_job(dict(line.split("=", 1) for line in shown.splitlines())) == {FEZ.name: FEZ}


def test_upstreams_reader_finds_its_settings_by_the_name_that_it_reads(monkeypatch):
    for name, value in write_job([FEZ]).items():
        monkeypatch.setenv(name, value)

    names, types = qrmi.get_job_qpu_resources_and_types()

    assert (names, types) == (["emulated_fez"], ["ibm-quantum-compute-service"])
    assert write_job([FEZ])[f"{names[0]}_QRMI_IBM_QCS_ENDPOINT"] == "http://127.0.0.1:1"


def test_another_job_does_not_inherit_it():
    assert without_leases(write_job([FEZ]) | {"PATH": "/bin"}) == {"PATH": "/bin"}


def test_its_identity_depends_on_the_name_and_not_on_the_port():
    """A rerun's emulator listens elsewhere, and yet is to find the tasks of the first."""
    elsewhere = {**FEZ.environment, "QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:2"}

    assert replace(FEZ, environment=elsewhere).identity == FEZ.identity


def test_no_real_qpu_and_no_other_model_has_its_identity():
    real = {k: v for k, v in FEZ.environment.items() if k not in (EMULATED, RESOURCE_ID)}
    noisy = {**FEZ.environment, EMULATED: "emulated:fez:noisy"}
    others = [replace(FEZ, environment=real), replace(FEZ, environment=noisy), FRESNEL]

    assert FEZ.identity not in {each.identity for each in others}
    assert FRESNEL.identity != REAL_FRESNEL.identity


def test_two_qpus_of_one_name_in_one_environment_are_refused():
    with pytest.raises(ConfigError, match="'FRESNEL' and 'emulated:FRESNEL': one process cannot"):
        write_job([REAL_FRESNEL, FRESNEL])


def test_nothing_is_left_of_a_qpu_of_the_same_name():
    """Otherwise a real QPU would be reached at the emulator's address, or the other way round."""
    outer = write_job([FRESNEL]) | {"PATH": "/bin"}

    inner = add_job(outer, write_job([REAL_FRESNEL]))

    assert read_job(inner) == {"FRESNEL": REAL_FRESNEL}
    assert inner["PATH"] == "/bin"


def test_an_emulated_qpu_without_an_emulator_is_not_reached():
    """QRMI takes the vendor's own address if there is none."""
    with pytest.raises(ConfigError, match="Open a lease on it first"):
        require_reachable("emulated:FRESNEL", {EMULATED: "emulated:FRESNEL"})
    require_reachable("emulated:FRESNEL", FRESNEL.environment)
    require_reachable("FRESNEL", {})


def test_proxies_are_not_asked_for_the_emulator():
    assert loopback_variables({"no_proxy": "a.example", "NO_PROXY": "127.0.0.1"}) == {
        "no_proxy": "a.example,127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
