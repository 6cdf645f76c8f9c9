"""IBM Quantum System API and its S3-compatible storage, through the real `qrmi` client."""

from __future__ import annotations

import json

import pytest
from emulator_clients import ask, bell, ibm_headers, primitive, wait
from qiskit import QuantumCircuit
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qiskit_ibm_runtime.json import RuntimeEncoder
from qrmi import (
    Payload,
    QrmiError,
    ResourceStatusCode,
    TaskNotFoundError,
    TaskNotReadyError,
    TaskStatus,
)
from qrmi.primitives.ibm import SamplerV2, get_backend

from qrmi_workflows.emulator.sigv4 import SignatureError, SignedRequest, check_signature


def test_every_method_of_a_resource(qpu):
    """Every method works; input, result and logs go through the object store, signed."""
    resource = qpu("ibm_system")
    status = resource.status()
    assert status.status == ResourceStatusCode.Online
    assert status.capacity.available_slots == 2
    assert json.loads(resource.target().value)["configuration"]["backend_name"] == "ibm_system"
    token = resource.acquire()
    task = resource.task_start(primitive("sampler", [[bell(), None, 500]]))
    assert wait(resource, task) == TaskStatus.Completed
    result = ResultDecoder.decode(resource.task_result(task).value)
    assert set(result[0].data.meas.get_counts()) == {"00", "11"}
    assert "500 shots" in resource.task_logs(task)
    resource.task_stop(task)
    with pytest.raises(TaskNotFoundError):
        resource.task_status(task)
    resource.release(token)
    assert resource.metadata()["backend_name"] == "ibm_system"


def test_primitives(qpu):
    """`qrmi.primitives.ibm` works on this type too."""
    from qiskit import QuantumCircuit, transpile

    resource = qpu("ibm_system")
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.measure_all()
    isa = transpile(circuit, get_backend(resource))
    counts = SamplerV2(resource).run([isa], shots=100).result()[0].data.meas.get_counts()
    assert counts == {"1": 100}


def test_more_shots_than_the_backend_allows_fail_with_ibms_code(qpu, emulator):
    """The system validates a job when it runs, after it has been accepted."""
    resource = qpu("ibm_system")
    task = resource.task_start(primitive("sampler", [[bell(), None, 100_001]]))
    assert wait(resource, task) == TaskStatus.Failed
    headers = ibm_headers(emulator, "ibm-quantum-system")
    _, document = ask(emulator, "GET", f"/ibm-quantum-system/v1/jobs/{task}", headers=headers)
    assert document["reason_code"] == 6000
    assert document["reason_message"] == "Too many shots given (100001 > 100000)."


def test_a_circuit_that_is_not_isa_fails_with_ibms_code(qpu, emulator):
    """The code is in IBM's registry of errors."""
    circuit = QuantumCircuit(1, 1)
    circuit.h(0)
    circuit.measure(0, 0)
    text = json.dumps({"pubs": [[circuit]], "version": 2}, cls=RuntimeEncoder)
    resource = qpu("ibm_system")
    task = resource.task_start(Payload.QiskitPrimitive(input=text, program_id="sampler"))
    assert wait(resource, task) == TaskStatus.Failed
    headers = ibm_headers(emulator, "ibm-quantum-system")
    _, document = ask(emulator, "GET", f"/ibm-quantum-system/v1/jobs/{task}", headers=headers)
    assert document["reason_code"] == 1517


def test_a_failed_task_reports_its_reason(qpu):
    """The reason is in QRMI's exception and in the task's logs."""
    resource = qpu("ibm_system")
    task = resource.task_start(primitive("estimator", [["nonsense", "Z"]]))
    assert wait(resource, task) == TaskStatus.Failed
    with pytest.raises(TaskNotReadyError, match="not OpenQASM 3"):
        resource.task_result(task)
    assert "not OpenQASM 3" in resource.task_logs(task)


def test_capacity_counts_lanes_and_a_stopped_task_frees_its_lane(qpu):
    """A task takes a lane immediately, because this API has no queue."""
    resource = qpu("ibm_full")
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert resource.task_status(task) == TaskStatus.Running
    assert resource.status().capacity.available_slots == 0
    with pytest.raises(TaskNotReadyError):
        resource.task_result(task)
    resource.task_stop(task)
    assert resource.status().capacity.available_slots == 1


def test_a_reserved_backend_is_busy(qpu, emulator):
    """The status is busy while another workload manager has reserved the lanes."""
    emulator.control.ask("PATCH", "/qpus/ibm_full", {"availability": "reserved"})
    assert qpu("ibm_full").status().busy
    emulator.control.ask("PATCH", "/qpus/ibm_full", {"availability": "online"})
    assert not qpu("ibm_full").status().busy


def test_an_input_signed_with_a_wrong_key_is_rejected(qpu):
    """The object store verifies the signature itself."""
    resource = qpu("ibm_system", QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(QrmiError, match="SignatureDoesNotMatch"):
        resource.task_start(primitive("sampler", [[bell()]]))


# Amazon's examples: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
# and https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
KEYS = {"AKIAIOSFODNN7EXAMPLE": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
SCOPE = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
MOMENT = 1369353600.0
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SIGNED = SignedRequest(
    method="GET",
    path="/test.txt",
    query="",
    headers={
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": EMPTY,
        "x-amz-date": "20130524T000000Z",
        "authorization": f"AWS4-HMAC-SHA256 Credential={SCOPE},"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    },
)
PRESIGNED = SignedRequest(
    method="GET",
    path="/test.txt",
    query="X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="
    + SCOPE.replace("/", "%2F")
    + "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
    "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    headers={"host": "examplebucket.s3.amazonaws.com"},
)


def test_signatures_agree_with_amazons_examples():
    """Both the header and the presigned URL are accepted."""
    check_signature(SIGNED, KEYS, b"", MOMENT)
    check_signature(PRESIGNED, KEYS, b"", MOMENT + 86399)


@pytest.mark.parametrize(
    ("request_", "body", "now", "code"),
    [
        (SIGNED, b"x", MOMENT, "XAmzContentSHA256Mismatch"),
        (SIGNED, b"", MOMENT + 1000, "RequestTimeTooSkewed"),
        (PRESIGNED, b"", MOMENT + 86401, "AccessDenied"),
    ],
)
def test_a_signature_is_rejected_with_another_body_or_too_late(request_, body, now, code):
    """S3's error code tells the difference."""
    with pytest.raises(SignatureError) as caught:
        check_signature(request_, KEYS, body, now)
    assert caught.value.code == code
