"""Which QPUs a step may fall back to, and what is refused before anything is acquired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qrmi_workflows.errors import PayloadError, RequestError, StepMovedError, UnknownQPUError
from qrmi_workflows.lease.fallback_plan import plan_fallback, require_runnable, submit_again
from qrmi_workflows.payloads import Payload

CIRCUIT = "OPENQASM 3.0; bit[1] c; c[0] = measure $0;"
BELL = {"program_id": "sampler", "parameters": {"pubs": [[CIRCUIT, None, 1]], "version": 2}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    types = {"ibm_fez": "ibm-quantum-system", "ibm_torino": "ibm-quantum-system"}
    types["FRESNEL"] = "pasqal-cloud"
    path = tmp_path / "qrmi_config.json"
    path.write_text(
        json.dumps({"resources": [{"name": name, "type": kind} for name, kind in types.items()]})
    )
    path.chmod(0o600)
    return path


def plan(config, qpu, fallback, **environ):
    return plan_fallback(qpu, fallback, config=config, environ=environ)


def test_there_is_no_fallback_unless_it_is_asked_for(config):
    assert plan(config, "ibm_fez", None) is None
    assert plan(config, "ibm_fez", []) is None
    assert plan(config, "ibm_fez", None, QPU_FALLBACK="") is None


@pytest.mark.parametrize(
    "fallback",
    ["ibm_torino,emulated:fez", "ibm_torino|emulated:fez", ["ibm_torino", "emulated:fez"]],
)
def test_the_qpus_are_tried_in_the_order_given(config, fallback):
    found = plan(config, "ibm_fez", fallback)

    assert found.names == ("ibm_fez", "ibm_torino", "emulated:fez")
    assert [each.name for each in found.found.values()] == [*found.names]


def test_a_child_process_finds_its_fallback_in_the_environment(config):
    found = plan(config, "ibm_fez", None, QPU_FALLBACK="ibm_torino")

    assert found.names == ("ibm_fez", "ibm_torino")


@pytest.mark.parametrize("named", [None, "ibm_fez"])
@pytest.mark.parametrize("fallback", [None, ["ibm_torino", "emulated:fez"]])
def test_a_step_that_has_moved_goes_on_with_the_qpu_that_its_job_holds(config, named, fallback):
    held = {"QRMI_JOB_QPU_RESOURCES": "ibm_torino", "QRMI_JOB_QPU_TYPES": "ibm-quantum-system"}
    moved = {"QPU_MOVED_FROM": "ibm_fez", "QPU_FALLBACK": "emulated:fez"}

    found = plan(config, named, fallback, **held, **moved)

    assert found.left == ("ibm_fez",)
    assert found.names == ("ibm_torino", "emulated:fez")


def test_an_emulated_qpu_has_no_fallback(config):
    """A workflow is tried out with `emulated:…` as its QPU: that must not cost anything."""
    assert plan(config, "emulated:fez", ["ibm_torino"]) is None


@pytest.mark.parametrize(
    ("fallback", "message"),
    [
        (["ibm_fez"], "'ibm_fez' cannot fall back to itself"),
        (["ibm_torino", "ibm_torino"], "named twice"),
        (["ibm_*"], "is not one QPU"),
        (["emulated:fez", "ibm_torino"], "'ibm_torino' would never be used"),
        (["emulated:fez", "emulated:torino"], "an emulated QPU must be the last"),
    ],
)
def test_a_fallback_that_makes_no_sense_is_refused(config, fallback, message):
    with pytest.raises(RequestError, match=message):
        plan(config, "ibm_fez", fallback)


def test_an_unknown_fallback_is_refused_with_a_similar_name(config):
    with pytest.raises(UnknownQPUError, match="Did you mean 'ibm_torino'"):
        plan(config, "ibm_fez", ["ibm_tornio"])


def test_a_payload_for_another_vendor_than_the_fallbacks_is_refused(config):
    payload = Payload.from_content(BELL)

    with pytest.raises(PayloadError, match="cannot run on 'FRESNEL', to which the step would") as e:
        require_runnable(payload, "ibm_fez", "ibm_torino,FRESNEL", config=config)
    assert str(e.value).endswith(
        "it is for ibm, and the QPU's type is pasqal-cloud. Leave 'FRESNEL' out of the fallback."
    )
    require_runnable(payload, "ibm_fez", "ibm_torino,emulated:fez", config=config)


def test_the_engine_is_told_which_qpu_needs_a_job_of_its_own(tmp_path):
    file = tmp_path / "moved"

    error = submit_again(
        ["ibm_fez"], "ibm_torino", ["emulated:fez"],
        reason="offline", environ={"QPU_MOVE_FILE": str(file)},
    )  # fmt: skip

    assert isinstance(error, StepMovedError)
    assert error.exit_code == 75
    assert "--qpu ibm_torino --fallback emulated:fez" in error.message
    assert json.loads(file.read_text()) == {
        "left": ["ibm_fez"], "qpu": "ibm_torino", "rest": ["emulated:fez"], "reason": "offline",
    }  # fmt: skip
