"""What the vendors' targets say about a QPU, for choosing one."""

from __future__ import annotations

import json

import pulser
import pytest
from ibm_targets import snapshot_target

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.registry import capabilities, registered_types


def test_an_ibm_qpu_has_its_gates_and_instructions():
    found = capabilities("ibm-quantum-system", snapshot_target("kingston"), qpu="ibm_kingston")

    assert found.qubits == 156
    assert found.gates >= {"cz", "sx", "if_else"}


def test_an_iqm_machine_has_the_qubits_that_are_calibrated():
    target = {
        "static_quantum_architecture": {"qubits": ["QB1", "QB2", "QB3"]},
        "dynamic_quantum_architecture": {
            "qubits": ["QB1", "QB2"],
            "gates": {"prx": {}, "cz": {}, "measure": {}},
        },
    }
    found = capabilities("iqm-server", json.dumps(target), qpu="garnet")
    assert found == Capabilities(qubits=2, gates=frozenset({"prx", "cz", "measure"}))


def test_a_pasqal_device_has_its_largest_register_and_its_channels():
    specs = pulser.AnalogDevice.to_abstract_repr()
    expected = Capabilities(
        qubits=pulser.AnalogDevice.max_atom_num, gates=frozenset({"rydberg_global"})
    )
    for target in ([{"device_type": "FRESNEL", "specs": specs}], {"specs": specs}):
        assert capabilities("pasqal-cloud", json.dumps(target), qpu="FRESNEL") == expected


def test_of_several_pasqal_devices_the_qpu_of_that_name_counts():
    small = json.loads(pulser.AnalogDevice.to_abstract_repr())
    large = small | {"name": "EMU_FREE", "max_atom_num": 100}
    target = json.dumps(
        [
            {"device_type": each["name"], "specs": json.dumps(each)}
            for each in (small | {"name": "FRESNEL"}, large)
        ]
    )
    assert capabilities("pasqal-cloud", target, qpu="FRESNEL").qubits == small["max_atom_num"]
    assert capabilities("pasqal-cloud", target, qpu="other").qubits == 100


def test_felis_has_the_instructions_of_its_target():
    target = {
        "numQubits": 40,
        "instructions": [
            {"signature": "__quantum__qis__cx__body:void (%Qubit*, %Qubit*)"},
            {"signature": "__quantum__qis__s__adj:void (%Qubit*)"},
            {"signature": "something else"},
        ],
    }
    found = capabilities("alice-bob-felis", json.dumps(target), qpu="felis")
    assert found == Capabilities(qubits=40, gates=frozenset({"cx", "s"}))


def test_an_oqtopus_device_has_its_basis_gates():
    target = {"n_qubits": 64, "basis_gates": ["sx", "rz", "cx"], "supported_instructions": None}
    found = capabilities("oqtopus", json.dumps(target), qpu="device")
    assert found == Capabilities(qubits=64, gates=frozenset({"sx", "rz", "cx"}))


@pytest.mark.parametrize("qubits", [None, "156", True, 0, -1, 2.5, [156]])
def test_anything_but_a_positive_number_of_qubits_is_not_known(qubits):
    assert Capabilities.of(qubits, None, "cz", [None]) == Capabilities()


@pytest.mark.parametrize("type_", ["iqm-server", "oqtopus", "ibm-quantum-system"])
def test_what_is_no_target_is_refused(type_):
    with pytest.raises(ResultError, match="not a valid target"):
        capabilities(type_, "[1]", qpu="q")


@pytest.mark.parametrize("type_", ["pasqal-cloud", "alice-bob-felis", "other"])
def test_of_a_target_in_an_unknown_format_nothing_is_known(type_):
    assert capabilities(type_, "[1]", qpu="q") == Capabilities()


def test_a_type_that_no_vendor_has_says_nothing():
    assert "other" not in registered_types()
    assert capabilities("other", "{}", qpu="q") == Capabilities()
