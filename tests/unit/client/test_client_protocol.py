"""The interface to a QPU: the paper's Table I, what QRMI has added since, and nothing else."""

from __future__ import annotations

import inspect

import pytest
import qrmi

from qrmi_workflows.client.protocol import QuantumResource, TaskState
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
ADDED_SINCE = {"resource_id": [], "resource_type": [], "status": [], "task_logs": ["task_id"]}


def methods(interface: type) -> dict[str, list[inspect.Parameter]]:
    """Return an interface's public methods and their parameters."""
    return {
        name: list(inspect.signature(method).parameters.values())[1:]
        for name, method in inspect.getmembers(interface, inspect.isroutine)
        if not name.startswith("_")
    }


def names(parameters: list[inspect.Parameter]) -> list[str]:
    """Return the names of the parameters that a caller must give."""
    return [each.name for each in parameters if each.default is each.empty]


def test_the_protocol_has_the_papers_methods_and_those_that_qrmi_has_added_since():
    found = {
        name: [each.name for each in given] for name, given in methods(QuantumResource).items()
    }

    assert found == TABLE_I | ADDED_SINCE


def test_the_protocol_has_every_method_of_qrmis_class():
    assert set(methods(qrmi.QuantumResource)) - {"from_config"} == set(methods(QuantumResource))


def test_our_resource_accepts_the_same_calls():
    ours = {name: names(parameters) for name, parameters in methods(QRMIResource).items()}

    assert ours.items() >= (TABLE_I | ADDED_SINCE).items()


@pytest.mark.parametrize("name", ["Queued", "Running", "Completed", "Failed", "Cancelled"])
def test_qrmis_states_become_ours(name):
    assert TaskState.of(getattr(qrmi.TaskStatus, name)) == name


def test_a_state_that_is_not_known_is_unknown_and_not_final():
    state = TaskState.of("TaskStatus.Teleported")

    assert state is TaskState.UNKNOWN
    assert not state.is_final
