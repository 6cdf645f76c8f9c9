"""Which QPUs can be emulated by name."""

from __future__ import annotations

import pytest

from qrmi_workflows.emulator.dialects import load_dialect
from qrmi_workflows.emulator.settings_file import parse_qpu
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.vendors import emulated
from qrmi_workflows.vendors.emulated import emulated_models, find_emulated
from qrmi_workflows.vendors.ibm import models
from qrmi_workflows.vendors.registry import registered_type


def test_the_emulator_knows_every_model():
    for model, type_ in emulated_models().items():
        found = find_emulated(f"emulated:{model}")

        assert found.type == type_
        settings = parse_qpu(f"{found.resource_id}={found.type}:{found.model}")
        assert settings.name == found.resource_id


def test_every_model_of_the_emulator_has_a_name():
    for type_ in set(emulated_models().values()):
        models_ = registered_type(type_).emulation.models()
        assert set(load_dialect(type_).models()) == set(models_.values())


def test_a_resource_id_is_a_variables_name_and_tells_the_variants_apart():
    names = [f"emulated:{model}" for model in emulated_models()]
    ids = [find_emulated(name).resource_id for name in [*names, "emulated:fez:noisy"]]

    assert all(each.isidentifier() for each in ids)
    of_ibm = [each for each in ids if each.startswith("emulated_")]
    assert len(set(of_ibm)) == len(of_ibm)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("emulated:ibm_fez", "emulated:fez"),
        ("emulated:Fez", "emulated:fez"),
        ("emulated:torinno:noisy", "emulated:torino:noisy"),
        ("emulated:fresnel", "emulated:FRESNEL"),
    ],
)
def test_an_unknown_model_gets_the_models_and_the_nearest(name, nearest):
    with pytest.raises(RequestError, match=f"FRESNEL, .*torino.* Did you mean '{nearest}'"):
        find_emulated(name)


def test_noise_is_refused_where_there_is_none():
    with pytest.raises(RequestError, match=r"no noise for this model\. Ask for emulated:garnet\."):
        find_emulated("emulated:garnet:noisy")


def test_without_the_models_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    models.snapshots.cache_clear()
    models.snapshot_folder.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"pip install 'qrmi-workflows\[emulator\]'"):
            find_emulated("emulated:fez")
        assert find_emulated("emulated:FRESNEL").type == "pasqal-cloud"
    finally:
        models.snapshots.cache_clear()
        models.snapshot_folder.cache_clear()


def test_vendors_without_emulation_are_left_out():
    assert "qiskit-runtime-service" not in emulated._emulations()
