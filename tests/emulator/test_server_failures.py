"""A server fails for a moment: every client's error says that the request may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.acquire import find_qpu

TASK = "0190f7a8-0000-7000-8000-000000000000"
QPUS = (
    "ibm_fez",
    # Its client repeats each request for up to 15 s.
    pytest.param("ibm_system", marks=pytest.mark.slow),
    "FRESNEL",
    "garnet_mock",
    "ab_emu_40q_logical_noiseless",
)
FAULTS = {
    "unavailable": {"kind": "status", "status": 503},
    "too many requests": {"kind": "status", "status": 429},
    "cut off": {"kind": "drop"},
}


@pytest.fixture
def fail(emulator: Emulator) -> Iterator[Callable[..., Any]]:
    """Activate a fault rule."""
    yield lambda **rule: emulator.control.ask("POST", "/faults", rule)
    emulator.control.ask("DELETE", "/faults")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", QPUS)
def test_a_request_about_a_task_may_be_repeated(emulator, fail, name, fault):
    qpu = find_qpu(name, config=emulator.config_path)
    resource = QRMIResource(qpu.name, qpu.type, qpu.environment)
    fail(route="*", **FAULTS[fault])

    for ask in (resource.task_status, resource.task_result):
        with pytest.raises(QPUError) as caught:
            ask(TASK)
        assert caught.value.retryable, caught.value
