"""Finding a QPU: in the job's environment, else in qrmi_config.json."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.config.job import JobQPU, write_job
from qrmi_workflows.errors import ConfigError, UnknownQPUError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.stage import Published, Stage

CARRIED = JobQPU(name="a", type="pasqal-cloud", environment={"QRMI_X": "job"}, token="t1")
OTHER = JobQPU(name="b", type="pasqal-cloud", environment={}, token="t2")


@pytest.fixture
def environ(tmp_path):
    """An environment whose qrmi_config.json defines `a` and `c`."""
    path = tmp_path / "qrmi_config.json"
    entries = [
        {"name": name, "type": "pasqal-cloud", "environment": {"QRMI_X": "file"}} for name in "ac"
    ]
    path.write_text(json.dumps({"resources": entries}))
    return {"QPU_CONFIG": str(path)}


def test_a_qpu_of_the_job_takes_precedence(environ):
    found = find_qpu("a", environ=environ | write_job([CARRIED, OTHER]))

    assert found == CARRIED


def test_another_qpu_is_found_in_the_file_and_is_not_yet_acquired(environ):
    found = find_qpu("c", environ=environ | write_job([CARRIED]))

    assert (found.environment, found.token) == ({"QRMI_X": "file"}, None)


def test_the_name_may_be_omitted_if_the_job_carries_one_qpu(environ):
    assert find_qpu(None, environ=environ | write_job([CARRIED])) == CARRIED
    with pytest.raises(ConfigError, match="no QPU named"):
        find_qpu(None, environ=environ | write_job([CARRIED, OTHER]))


def test_an_unknown_qpu_is_refused_with_the_known_ones(environ):
    with pytest.raises(UnknownQPUError, match="must be one of: a, c"):
        find_qpu("z", environ=environ)


def test_a_job_without_a_file_offers_what_it_carries(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)} | write_job([CARRIED])

    assert find_qpu("a", environ=environ) == CARRIED
    with pytest.raises(UnknownQPUError, match="in this job; must be one of: a"):
        find_qpu("z", environ=environ)


@pytest.mark.parametrize("generation", [1, 2])
def test_without_definitions_a_qpu_is_that_of_a_stage_that_is_ready(
    tmp_path, monkeypatch, generation
):
    """At a site whose users have no qrmi_config.json."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "none.json"))
    monkeypatch.setenv("QPU_STAGE", "vqe")
    stage = Stage(name="vqe", qpu="ibm_fez", type="", generation=1)
    stage.folder.create()
    with stage.folder.locked():
        stage.save()
    with pytest.raises(ConfigError):
        find_qpu(None)
    held = JobQPU(name="ibm_fez", type="ibm-quantum-system", environment={"A": "1"}, token="t")
    variables = write_job([held])
    Published(stage=stage.id, generation=generation, variables=variables).save(stage.folder)

    if generation == stage.generation:
        found = find_qpu(None)
        assert (found.name, found.type, found.token) == ("ibm_fez", "ibm-quantum-system", None)
    else:
        with pytest.raises(ConfigError):
            find_qpu(None)
