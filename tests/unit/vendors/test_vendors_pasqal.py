"""Checks of Pulser sequences before submission."""

from __future__ import annotations

import json
from typing import Any

import pulser
import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.vendors.registry import load_vendor


def sequence_for(device: Any) -> dict[str, Any]:
    """Return a sequence of two atoms in Pulser's abstract representation."""
    register = pulser.Register.from_coordinates([(0, 0), (6, 0)], prefix="q")
    sequence = pulser.Sequence(register, device)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(200, 1, 0, 0), "global")
    return json.loads(sequence.to_abstract_repr())


def targets() -> list[str]:
    """Return one target in the formats of Pasqal Cloud, Pasqal Local, and a device alone."""
    specs = pulser.AnalogDevice.to_abstract_repr()
    return [
        json.dumps([{"device_type": "FRESNEL", "specs": specs}]),
        json.dumps({"specs": specs}),
        specs,
    ]


@pytest.mark.parametrize("target", targets())
def test_a_sequence_must_be_for_a_device_of_its_qpu(target):
    vendor = load_vendor("pasqal")
    valid = {"sequence": sequence_for(pulser.AnalogDevice), "job_runs": 1}
    invalid = {"sequence": sequence_for(pulser.MockDevice), "job_runs": 1}

    vendor.check(valid, qpu="F", target=target)
    with pytest.raises(PayloadError, match="'MockDevice'; on QPU 'F', must be one of: Analog"):
        vendor.check(invalid, qpu="F", target=target)


def test_the_limits_of_the_device_apply():
    """It allows a maximum number of runs and of atoms."""
    vendor, target = load_vendor("pasqal"), targets()[0]
    limit = pulser.AnalogDevice.max_runs
    content = {"sequence": sequence_for(pulser.AnalogDevice), "job_runs": limit}

    vendor.check(content, qpu="F", target=target)
    with pytest.raises(PayloadError, match=f"{limit + 1} runs: must be at most {limit} on QPU 'F'"):
        vendor.check({**content, "job_runs": limit + 1}, qpu="F", target=target)
    register = content["sequence"]["register"] * 60
    large = {**content["sequence"], "register": register}
    with pytest.raises(PayloadError, match="120 atoms: must be at most 80 on QPU 'F'"):
        vendor.check({"sequence": large, "job_runs": 1}, qpu="F", target=target)


def test_an_invalid_target_is_refused_for_caching_but_not_for_checks():
    """The vendor checks the sequence as well. A valid target has no calibration date."""
    vendor = load_vendor("pasqal")
    content = {"sequence": sequence_for(pulser.AnalogDevice), "job_runs": 1}

    vendor.check(content, qpu="F", target="[]")
    with pytest.raises(ResultError, match="Fetch it again"):
        vendor.calibrated("[]")
    assert vendor.calibrated(targets()[0]) is None


def test_a_mappable_register_is_refused():
    layout = pulser.register.special_layouts.TriangularLatticeLayout(61, 6)
    sequence = pulser.Sequence(layout.make_mappable_register(3), pulser.MockDevice)
    content = {"sequence": json.loads(sequence.to_abstract_repr()), "job_runs": 1}
    with pytest.raises(PayloadError, match=r"register is mappable.*qubits"):
        load_vendor("pasqal").check(content, qpu="F", target=None)


@pytest.mark.parametrize(
    "text", ['{"counter": {"01": 2, "10": 1}}', "{'counter': {'01': 2, '10': 1}}"]
)
def test_a_result_is_json_or_pythons_repr_of_it(text):
    """The QPU that Pasqal's warden has for trials writes Python's repr."""
    counts = {"01": 2, "10": 1}

    decoded = load_vendor("pasqal").decode("pulser", text)

    assert decoded == [{"registers": {"atoms": {"num_bits": 2, "counts": counts}}}]


@pytest.mark.parametrize(
    "text",
    ["", "{'counter': ", "__import__('os').getcwd()", "{'counter': 7}", "(" * 100_000, "{1: 2}"],
)
def test_a_result_in_another_form_is_an_error_and_is_not_executed(text):
    with pytest.raises(ResultError, match="cannot be decoded"):
        load_vendor("pasqal").decode("pulser", text)
