"""Checks of Pulser sequences before submission."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pulser
import pytest
from pulser.json import abstract_repr

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.pasqal.checks import SEQUENCE_KEYS
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
    with pytest.raises(PayloadError, match="'MockDevice'; on QPU 'F', it must be one of: Analog"):
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


LIMIT = pulser.AnalogDevice.channels["rydberg_global"].max_amp
DETUNING = pulser.AnalogDevice.channels["rydberg_global"].max_abs_detuning


def with_pulse(amplitude: Any, detuning: Any = 0.0, device: Any = pulser.AnalogDevice) -> Any:
    """Return a payload whose sequence has this pulse, which Pulser does not check here."""
    register = pulser.Register.from_coordinates([(0, 0), (6, 0)], prefix="q", center=False)
    draft = pulser.Sequence(register, pulser.MockDevice)
    draft.declare_channel("global", "rydberg_global")
    flat = pulser.ConstantWaveform
    amplitude = flat(400, amplitude) if isinstance(amplitude, float) else amplitude
    detuning = flat(amplitude.duration, detuning) if isinstance(detuning, float) else detuning
    draft.add(pulser.Pulse(amplitude, detuning, 0), "global")
    sequence = json.loads(draft.to_abstract_repr())
    sequence["device"] = json.loads(device.to_abstract_repr())
    return {"sequence": sequence, "job_runs": 1}


def is_taken(content: Any) -> bool:
    """Return whether the checks let a payload pass, which must be so exactly if Pulser loads it."""
    vendor, target = load_vendor("pasqal"), targets()[0]
    try:
        pulser.Sequence.from_abstract_repr(json.dumps(content["sequence"]))
    except Exception:
        for qpu in ("FRESNEL", "EMU_FREE"):
            with pytest.raises(PayloadError, match=r"must be at most 12[.\d]+ rad/µs on channel"):
                vendor.check(content, qpu=qpu, target=target)
        return False
    for qpu in ("FRESNEL", "EMU_FREE"):
        vendor.check(content, qpu=qpu, target=target)
    return True


@pytest.mark.parametrize("scale", [0.98, 1.02])
@pytest.mark.parametrize(
    "make",
    [
        lambda peak: peak,
        lambda peak: pulser.RampWaveform(400, 0, peak),
        lambda peak: pulser.RampWaveform(400, peak, 0),
        lambda peak: pulser.CustomWaveform([0.0] * 200 + [peak] * 200),
        lambda peak: pulser.InterpolatedWaveform(400, [0, peak, 0]),
        lambda peak: pulser.BlackmanWaveform.from_max_val(peak, 2.0),
        lambda peak: pulser.BlackmanWaveform(400, 0.42 * 0.399 * peak),
        lambda peak: pulser.BlackmanWaveform(401, 0.42 * 0.4 * peak),
        lambda peak: pulser.CompositeWaveform(
            pulser.ConstantWaveform(200, 1.0), pulser.RampWaveform(200, 1.0, peak)
        ),
    ],
)
def test_a_pulse_over_a_limit_is_refused_exactly_if_pulser_refuses_it(make, scale):
    assert is_taken(with_pulse(make(LIMIT * scale))) == (scale < 1)


@pytest.mark.parametrize("scale", [0.98, 1.02])
def test_a_detuning_over_the_limit_is_refused_too(scale):
    assert is_taken(with_pulse(1.0, -DETUNING * scale)) == (scale < 1)
    assert is_taken(with_pulse(1.0, pulser.RampWaveform(400, 0, DETUNING * scale))) == (scale < 1)


def test_atoms_too_close_and_sequences_too_long_are_refused():
    vendor, target = load_vendor("pasqal"), targets()[0]
    content = with_pulse(1.0)

    content["sequence"]["register"][1]["x"] = 5.0  # Pulser's limit, exactly
    vendor.check(content, qpu="FRESNEL", target=target)
    content["sequence"]["register"][1]["x"] = 4.9
    with pytest.raises(PayloadError, match=r"4.9 µm apart: must be at least 5 µm on QPU"):
        vendor.check(content, qpu="FRESNEL", target=target)
    content = with_pulse(1.0)
    content["sequence"]["operations"] *= 15  # of 400 ns
    vendor.check(content, qpu="FRESNEL", target=target)
    content["sequence"]["operations"] *= 2
    with pytest.raises(PayloadError, match=r"takes at least 12000 ns: must be at most 6000 ns on"):
        vendor.check(content, qpu="FRESNEL", target=target)


@pytest.mark.parametrize(
    "device", [pulser.AnalogDevice, pulser.DigitalAnalogDevice, pulser.MockDevice]
)
def test_an_emulator_runs_the_sequences_of_any_device(device):
    """Pulser's tutorials send those of its own devices to `EMU_FREE`, and so do upstream's."""
    vendor, content = load_vendor("pasqal"), {"sequence": sequence_for(device), "job_runs": 1}
    target = json.dumps([{"device_type": "EMU_FREE", "specs": renamed(pulser.MockDevice)}])

    vendor.check(content, qpu="EMU_FREE", target=target)
    with pytest.raises(PayloadError, match=r"must be one of: EMU_FREE. Build it"):
        vendor.check(content, qpu="FRESNEL", target=target)


def renamed(device: Any) -> str:
    """Return a device's specification under the name of the QPU."""
    return str(dataclasses.replace(device, name="EMU_FREE").to_abstract_repr())


def test_a_sequence_as_text_is_the_same_payload(tmp_path):
    """Upstream's generators write the text that Pulser returns, as a JSON string."""
    sequence = sequence_for(pulser.AnalogDevice)
    text = json.dumps({"sequence": json.dumps(sequence), "job_runs": 5})
    (tmp_path / "sequence.json").write_text(text)

    payload = Payload.from_file(tmp_path / "sequence.json")

    assert payload.digest == Payload.from_content({"sequence": sequence, "job_runs": 5}).digest
    assert Payload.from_content(text, shots=7).content["job_runs"] == 7


def test_a_sequence_as_text_that_is_no_sequence_is_refused():
    with pytest.raises(PayloadError, match=r"is a string that is not JSON.*to_abstract_repr"):
        Payload.from_content({"sequence": "{'version': 1}", "job_runs": 5})
    with pytest.raises(PayloadError, match=r"\['sequence'\]: .* is not of type 'object'"):
        Payload.from_content({"sequence": "[1]", "job_runs": 5})
    with pytest.raises(PayloadError, match="shots"):
        Payload.from_content({"sequence": "{}", "job_runs": 5}, observables="Z")


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


def test_a_misspelt_key_of_a_sequence_is_refused():
    content = {"sequence": sequence_for(pulser.AnalogDevice), "job_runs": 1}
    folder = Path(abstract_repr.__file__).parent / "schemas"
    schema = json.loads((folder / "sequence-schema.json").read_text())
    (keys,) = {tuple(sorted(each["properties"])) for each in _alternatives(schema)}
    assert keys == SEQUENCE_KEYS

    for name, message in (
        ("mesurement", "unknown key 'mesurement'; did you mean 'measurement'"),
        ("slm_mask_target", "did you mean 'slm_mask_targets'"),
    ):
        misspelt = {**content, "sequence": {**content["sequence"], name: None}}
        with pytest.raises(PayloadError, match=message):
            load_vendor("pasqal").check(misspelt, qpu="F", target=None)
    newer = {**content, "sequence": {**content["sequence"], "of_the_next_release": None}}
    load_vendor("pasqal").check(newer, qpu="F", target=None)


def _alternatives(schema):
    return schema["definitions"]["PulserSequence"]["anyOf"]


def test_a_sequence_of_cudaq_is_refused_with_what_runs_it():
    """In a payload, as an object or a string, or alone."""
    cudaq = {"setup": {"ahs_register": {}}, "hamiltonian": {}}
    for content in (
        {"sequence": cudaq, "job_runs": 10},
        {"sequence": json.dumps(cudaq), "job_runs": 10},
        cudaq,
    ):
        with pytest.raises(PayloadError, match=r"of CUDA-Q.*a rerun.*qpu lease exec"):
            Payload.from_content(content)
