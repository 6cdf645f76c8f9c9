"""A vendor that is silent, failing or gone gives an error that says which, within the deadline."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from break_it import without_coverage
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows.client.protocol import QuantumResource, TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.errors import AuthenticationError, ConfigError, DeadlineError, ResourceError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.registry import load_vendor

SILENT = """
import sys, time
from qrmi_workflows.errors import DeadlineError
from qrmi_workflows.client.resource import QRMIResource
settings = {f"QRMI_IBM_QCS_{key}": sys.argv[1] for key in
            ("ENDPOINT", "IAM_ENDPOINT", "IAM_APIKEY", "SERVICE_CRN")}
resource = QRMIResource("q", "ibm-quantum-compute-service", settings, deadlines={"status": 0.5})
try:
    resource.status()
except DeadlineError as error:
    print(error)
"""


@pytest.fixture
def resource(emulator):
    qpu = load_qpus(emulator.config_path)["ibm_quick"]
    return QRMIResource(qpu.name, qpu.type, qpu.environment)


def test_a_silent_vendor_costs_one_deadline_and_does_not_delay_the_exit():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", SILENT, url], capture_output=True, text=True, timeout=60
        )

    assert "did not answer status within 0.5 s" in done.stdout
    assert done.returncode == 0


def test_it_implements_the_papers_interface(resource):
    assert isinstance(resource, QuantumResource)
    assert resource.is_accessible()
    assert resource.resource_id() == "ibm_quick"
    assert resource.metadata()["backend_name"] == "ibm_quick"
    assert "configuration" in resource.target().value
    assert str(resource.status().status).endswith("Online")


def test_one_resource_serves_many_threads(resource):
    states, errors = [], []

    def ask() -> None:
        try:
            states.extend(resource.status().pending_job_count for _ in range(20))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(states) == 160


def test_it_works_after_a_fork(resource):
    code = (
        "import os, sys\n"
        "from qrmi_workflows.config.qpus import load_qpus\n"
        "from qrmi_workflows.client.resource import QRMIResource\n"
        "q = load_qpus()['ibm_quick']\n"
        "r = QRMIResource(q.name, q.type, q.environment)\n"
        "r.is_accessible()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if r.is_accessible() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )

    # Coverage's own lock may be held by a thread when the process forks.
    environ = without_coverage(os.environ)
    assert subprocess.run([sys.executable, "-c", code], env=environ, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("status", "retryable", "had_no_effect"),
    [
        (400, False, True),
        (403, False, True),
        (409, False, True),
        (423, True, True),
        (429, True, True),
        (500, True, False),
        (502, True, False),
        (503, True, False),
    ],
)
def test_a_status_code_tells_whether_to_retry_and_whether_it_had_no_effect(
    resource, fault, status, retryable, had_no_effect
):
    encoded = load_vendor("ibm").encode(Payload.from_content(bell()).content)
    fault("status", route="POST */jobs", status=status)

    with pytest.raises(ResourceError) as caught:
        resource.task_start(encoded)

    assert caught.value.status_code == status
    assert (caught.value.retryable, caught.value.had_no_effect) == (retryable, had_no_effect)
    assert caught.value.call == "task_start"


@pytest.mark.parametrize("kind", ["drop", "malformed"])
def test_a_truncated_answer_is_retryable(resource, fault, kind):
    resource.status()
    fault(kind, route="GET */backends", count=1)

    with pytest.raises(ResourceError) as caught:
        resource.status()

    assert caught.value.retryable
    assert resource.status()


def test_refused_credentials_have_their_own_error(resource, fault):
    fault("status", route="GET */backends", status=401)

    with pytest.raises(AuthenticationError, match="Renew the QPU's credentials"):
        resource.status()


def test_an_access_token_that_the_vendor_forgot_is_renewed(resource, fault):
    resource.status()
    fault("expire-tokens")

    assert resource.status()


def test_an_unreachable_vendor_has_certainly_accepted_nothing(emulator):
    environment = dict(load_qpus(emulator.config_path)["ibm_quick"].environment)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it does not listen, and keeps others from the port
        environment["QRMI_IBM_QCS_ENDPOINT"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        resource = QRMIResource("ibm_quick", "ibm-quantum-compute-service", environment)

        with pytest.raises(ResourceError) as caught:
            resource.task_start(load_vendor("ibm").encode(bell()))

    assert caught.value.retryable
    assert caught.value.had_no_effect


def test_an_unknown_type_and_missing_settings_are_refused():
    with pytest.raises(ConfigError, match="unknown type 'abacus'"):
        QRMIResource("q", "abacus", {})
    with pytest.raises(ConfigError, match=r"qrmi_config\.json"):
        QRMIResource("q", "ibm-quantum-compute-service", {}).status()


def test_a_missed_deadline_is_retryable(resource, fault, matched):
    resource.status()  # the handle is there, and has its token
    fault("hang", route="GET */backends", count=1)

    with pytest.raises(DeadlineError) as caught:
        resource.status(deadline=0.3)

    assert caught.value.retryable
    wait_until(matched, "the request that has no answer")
    assert resource.status()


def test_an_unknown_state_is_not_final():
    assert TaskState.of("TaskStatus.Dreaming") is TaskState.UNKNOWN
    assert not TaskState.UNKNOWN.is_final
