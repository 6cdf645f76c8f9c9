"""The interface to a QPU: the paper's Table I, what QRMI has added since, and nothing else."""

from __future__ import annotations

import inspect
import pickle

import pytest
import qrmi

from qrmi_workflows.client.protocol import QuantumResource
from qrmi_workflows.client.resource import QRMIResource

TABLE_I = {
    "is_accessible": [],
    "acquire": [],
    "release": ["token"],
    "task_start": ["payload"],
    "task_stop": ["task_id"],
    "task_status": ["task_id"],
    "task_result": ["task_id"],
    "target": [],
    "metadata": [],
}
SINCE = {"resource_id": [], "resource_type": [], "status": [], "task_logs": ["task_id"]}


def methods(interface: type) -> dict[str, list[str]]:
    """Return what can be called, and with what."""
    return {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(interface, inspect.isroutine)
        if not name.startswith("_")
    }


def test_the_protocol_is_the_papers_table_and_what_qrmi_has_added_since():
    assert methods(QuantumResource) == TABLE_I | SINCE


def test_qrmis_own_class_has_no_method_that_is_missed():
    assert set(methods(qrmi.QuantumResource)) - {"from_config"} == set(methods(QuantumResource))


def test_our_resource_takes_the_same_calls():
    assert methods(QRMIResource).items() >= methods(QuantumResource).items()


def test_a_resource_is_not_pickled_for_it_holds_credentials():
    resource = QRMIResource("ibm_a", "ibm-quantum-system", {"QRMI_IBM_QS_IAM_APIKEY": "secret"})

    with pytest.raises(TypeError, match="'ibm_a' holds credentials"):
        pickle.dumps(resource)
