"""Programs that make the calls of QRMI's examples and generators, and its `task_runner` unmodified.

They know only QRMI, so each runs under `qpu lease exec`, which gives them all that they need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pulser
import pytest
import requests
from emulator_clients import bell, pi_pulse
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from programs_under_lease import qpu_command, script
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit.library import efficient_su2
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime.models import BackendConfiguration, BackendProperties
from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
from qiskit_pasqal_provider.providers.gate import HamiltonianGate, InterpolatePoints
from qiskit_pasqal_provider.providers.pulse_utils import gen_seq, get_register_from_circuit

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator

PARAMETERS = np.linspace(0.1, 2.1, 12)


# IBM: the generators of payload files, and the example of each type


def generate(emulator: Emulator, qpu: str) -> tuple[QuantumCircuit, SparsePauliOp]:
    """Write a payload for each primitive, as upstream's generators do; return what they compute.

    The target is fetched from `{endpoint}/v1/backends`, and the payloads ask for plain JSON.
    """
    secrets = json.loads((emulator.folder / "credentials.json").read_text())["secrets"]
    secret = secrets["ibm-quantum-compute-service"]
    url = f"{emulator.url}/ibm-quantum-compute-service"
    tokens = IAMAuthenticator(apikey=secret["apikey"], url=url).token_manager
    headers = {"Authorization": f"Bearer {tokens.get_token()}", "Service-CRN": secret["crn"]}
    backend = f"{url}/v1/backends/{qpu}"
    configuration, properties = (
        requests.get(f"{backend}/{part}", headers=headers, timeout=10).json()
        for part in ("configuration", "properties")
    )
    target = convert_to_target(
        BackendConfiguration.from_dict(configuration), BackendProperties.from_dict(properties)
    )
    manager = generate_preset_pass_manager(optimization_level=1, target=target, seed_transpiler=5)
    circuit = efficient_su2(3, entanglement="linear", reps=1)
    observable = SparsePauliOp.from_list([("ZZI", 1.0), ("IXX", 0.5)])
    isa = manager.run(circuit)
    estimated = EstimatorPub.coerce((isa, observable.apply_layout(isa.layout), PARAMETERS))
    measured = circuit.copy()
    measured.measure_all()
    sampled = SamplerPub.coerce((manager.run(measured), PARAMETERS), 2000)
    values = [
        pub.parameter_values.as_array(pub.circuit.parameters).tolist()
        for pub in (sampled, estimated)
    ]
    texts = [
        qasm3.dumps(
            pub.circuit,
            disable_constants=True,
            allow_aliasing=True,
            experimental=qasm3.ExperimentalFeatures.SWITCH_CASE_V1,
        )
        for pub in (sampled, estimated)
    ]
    common = {"version": 2, "support_qiskit": False}
    sampler = {"pubs": [(texts[0], values[0])], **common, "shots": 2000, "options": {}}
    estimator = {
        "pubs": [(texts[1], estimated.observables.tolist(), values[1])],
        **common,
        "resilience_level": 1,
        "options": {"default_shots": 5000},
    }
    for program, parameters in (("sampler", sampler), ("estimator", estimator)):
        payload = {"parameters": parameters, "program_id": program}
        Path(f"{program}.json").write_text(json.dumps(payload))
        Path(f"{program}_params.json").write_text(json.dumps(parameters))
    return circuit.assign_parameters(PARAMETERS), observable


def check_counts(counts: dict[str, int], exact: dict[str, float]) -> None:
    """Each outcome is as frequent as it should be, within five standard errors."""
    shots = sum(counts.values())
    for bits in {*counts, *exact}:
        expected = exact.get(bits, 0.0)
        error = np.sqrt(max(expected * (1 - expected), 1e-3) / shots)
        assert abs(counts.get(bits, 0) / shots - expected) < 5 * error


def plain_counts(text: str) -> dict[str, int]:
    """Return the counts in IBM's plain JSON."""
    data = json.loads(text)["results"][0]["data"]["meas"]
    samples = [format(int(sample, 16), f"0{data['num_bits']}b") for sample in data["samples"]]
    return {bits: samples.count(bits) for bits in set(samples)}


@pytest.mark.parametrize("qpu", ["ibm_fez", "ibm_system"])
def test_payloads_of_ibms_generators_run_with_the_right_values(emulator, under_lease, qpu):
    circuit, observable = generate(emulator, "ibm_fez")  # both QPUs imitate the same machine
    exact = Statevector(circuit).probabilities_dict()

    qpu_command("run", "sampler.json", "-o", "sampled.json", "--qpu", qpu)
    qpu_command("run", "estimator.json", "-o", "estimated.json", "--qpu", qpu)
    under_lease(qpu, "task_runner", qpu, "sampler.json", "raw.json")

    check_counts(QuantumResult.load("sampled.json").counts("meas"), exact)
    check_counts(plain_counts(Path("raw.json").read_text()), exact)
    value, error = QuantumResult.load("estimated.json").expectation_values()
    right = Statevector(circuit).expectation_value(observable).real
    assert np.all(np.abs(np.array(value) - right) < 5 * np.array(error))
    assert 0 < np.max(error) < 0.1


RESOURCE = """
import json, sys, time
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

name, kind, payload, program = sys.argv[1:]
qrmi = QuantumResource(name, getattr(ResourceType, kind))
print(qrmi.resource_id(), qrmi.resource_type(), qrmi.is_accessible())
lock = qrmi.acquire()
print(json.loads(qrmi.target().value).keys(), qrmi.metadata())
task = qrmi.task_start(Payload.QiskitPrimitive(input=open(payload).read(), program_id=program))
while qrmi.task_status(task) in (TaskStatus.Running, TaskStatus.Queued):
    time.sleep(0.1)
print(qrmi.task_status(task))
print(qrmi.task_result(task).value)
print(qrmi.task_logs(task))
qrmi.task_stop(task)
qrmi.release(lock)
"""


@pytest.mark.parametrize(
    ("qpu", "kind"),
    [("ibm_fez", "IBMQuantumComputeService"), ("ibm_system", "IBMQuantumSystem")],
)
def test_the_example_of_ibms_resources_runs(under_lease, qpu, kind):
    """It acquires under the lease that it runs in, and releases; the lease's end is no error."""
    parameters = {"pubs": [[bell()]], "version": 2, "support_qiskit": False, "shots": 100}
    Path("params.json").write_text(json.dumps(parameters))

    printed = under_lease(qpu, *script(RESOURCE, qpu, kind, "params.json", "sampler"))

    assert "TaskStatus.Completed" in printed
    [result] = [line for line in printed.splitlines() if line.startswith('{"results"')]
    assert set(plain_counts(result)) == {"00", "11"}


PRIMITIVES = """
from qiskit.circuit.library import QAOAAnsatz, efficient_su2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qrmi.primitives import QRMIService
from qrmi.primitives.ibm import EstimatorV2, SamplerV2, get_target

[qrmi] = QRMIService().resources()
target = get_target(qrmi)
manager = generate_preset_pass_manager(optimization_level=1, target=target)
circuit = efficient_su2(3, entanglement="linear", reps=1)
circuit.measure_all()
job = SamplerV2(qrmi, options={"default_shots": 300}).run([(manager.run(circuit), [0.1] * 12)])
print(job.job_id(), job.status())
try:
    print(sum(job.result()[0].data.meas.get_counts().values()))
except RuntimeError as error:
    print(error)
if job.errored():
    print(qrmi.task_logs(job.job_id()))
observable = SparsePauliOp.from_list([("ZZI", 0.5), ("IZZ", 0.5)])
ansatz = manager.run(QAOAAnsatz(observable, reps=1))
pub = (ansatz, observable.apply_layout(ansatz.layout), [0.0, 0.0])
job = EstimatorV2(qrmi, options={}).run([pub])
print(abs(job.result()[0].data.evs) < 0.2, job.result()[0].metadata is not None, job.errored())
"""


@pytest.mark.slow
@pytest.mark.parametrize("qpu", ["ibm_fez", "ibm_system"])
def test_the_example_of_the_primitives_runs(under_lease, qpu):
    """The ansatz with angles 0 is |+++>, where the observable is 0."""
    printed = under_lease(qpu, *script(PRIMITIVES)).splitlines()

    assert printed[1:] == ["300", "True True False"]


PROVIDER = """
import sys
from qrmi import Config, ResourceProvider

defined = Config.load(sys.argv[1]).resource_map["all"]
assert defined.is_dynamic
provider = ResourceProvider(defined.resource_type, defined.environment)
print([each.resource_id() for each in provider.resources("name=ibm_*")], provider.least_busy())
"""


def test_the_example_of_the_providers_runs(emulator, under_lease):
    entries = json.loads(emulator.config_path.read_text())["resources"]
    [fez] = [entry for entry in entries if entry["name"] == "ibm_fez"]
    dynamic = {**fez, "name": "all", "is_dynamic": True}
    Path("dynamic.json").write_text(json.dumps({"resources": [dynamic]}))

    printed = under_lease("ibm_fez", *script(PROVIDER, "dynamic.json"))

    assert "ibm_fez" in printed


# Pasqal: both generators of payload files, and the examples


def pulser_payload() -> Any:
    register = pulser.Register({"q0": (-5, -5), "q1": (5, -5), "q2": (-5, 5), "q3": (5, 5)})
    sequence = pulser.Sequence(register, pulser.DigitalAnalogDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(100, 2, 2, 0), "rydberg")
    sequence.measure("ground-rydberg")
    return sequence.to_abstract_repr()


def provider_payload() -> Any:
    ramp = InterpolatePoints(values=[0, 4, 4, 0], times=[0, 0.2, 0.8, 1])
    detuning = InterpolatePoints(values=[-10, -10, 6, 6], times=[0, 0.2, 0.8, 1])
    coordinates = [[0, 0], [3, 5.2], [6, 0]]
    gate = HamiltonianGate(ramp, detuning, 0.0, coordinates, grid_transform="triangular")
    circuit = QuantumCircuit(3)
    circuit.append(gate, circuit.qubits)
    sequence = gen_seq(
        analog_register=get_register_from_circuit(circuit),
        device=pulser.DigitalAnalogDevice,
        circuit=circuit,
    )
    return sequence.to_abstract_repr()


@pytest.mark.parametrize("make", [pulser_payload, provider_payload])
def test_payloads_of_pasqals_generators_run(under_lease, make):
    """They hold the sequence as a JSON string; `task_runner` and `qpu run` give the same counts."""
    Path("sequence.json").write_text(json.dumps({"sequence": make(), "job_runs": 1000}))

    under_lease("EMU_FREE", "task_runner", "EMU_FREE", "sequence.json", "raw.json")
    qpu_command("run", "sequence.json", "-o", "result.json", "--qpu", "EMU_FREE")

    counts = QuantumResult.load("result.json").counts()
    raw = json.loads(Path("raw.json").read_text())["counter"]
    assert sum(counts.values()) == sum(raw.values()) == 1000
    for bits in {*counts, *raw}:
        assert abs(counts.get(bits, 0) - raw.get(bits, 0)) < 5 * np.sqrt(1000 / 2)


PASQAL = """
import sys, time
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

name, sequence = sys.argv[1], open(sys.argv[2]).read()
qrmi = QuantumResource(name, ResourceType.PasqalCloud)
print(qrmi.is_accessible(), len(qrmi.target().value) > 100)
first = qrmi.task_start(Payload.PasqalCloud(sequence=sequence, job_runs=1000))
qrmi.task_stop(first)
print(qrmi.task_status(first) in (TaskStatus.Cancelled, TaskStatus.Completed))
second = qrmi.task_start(Payload.PasqalCloud(sequence=sequence, job_runs=100))
while (status := qrmi.task_status(second)) not in (TaskStatus.Completed, TaskStatus.Failed):
    time.sleep(0.1)
print(status, qrmi.task_result(second).value)
"""


@pytest.mark.slow
def test_the_example_of_pasqals_resource_runs(under_lease):
    Path("sequence.json").write_text(pi_pulse(pulser.AnalogDevice))

    printed = under_lease("EMU_FREE", *script(PASQAL, "EMU_FREE", "sequence.json")).splitlines()

    assert printed == ["True True", "True", 'TaskStatus.Completed {"counter":{"1":100}}']


PULSER = """
import pulser
from pulser.backend.remote import JobParams
from qrmi import QRMIService
from qrmi.pulser import PulserQRMIConnection

[qrmi] = QRMIService().resources()
connection = PulserQRMIConnection(qrmi)
name, device = next(iter(connection.fetch_available_devices().items()))
places = {"q0": (-2.5, -2.5), "q1": (2.5, -2.5), "q2": (-2.5, 2.5), "q3": (2.5, 2.5)}
register = pulser.Register(places).with_automatic_layout(device)
sequence = pulser.Sequence(register, device)
sequence.declare_channel("rydberg", "rydberg_global")
sequence.add(pulser.Pulse.ConstantPulse(100, 2, 2, 0), "rydberg")
sequence.measure("ground-rydberg")
backend = pulser.QPUBackend(sequence, connection)
remote = backend.run([JobParams(runs=500, variables=[])], wait=True)
print(*connection.get_batch_logs(batch_id=remote.batch_id))
results = remote.get_available_results()[remote.batch_id]
[counts] = results.get_tagged_results()["bitstrings"]
print(sum(counts.values()))
"""


@pytest.mark.slow
def test_the_example_of_pulsers_connection_runs(under_lease):
    printed = under_lease("FRESNEL", *script(PULSER)).splitlines()

    assert printed[-1] == "500"


PROVIDER_SAMPLER = """
from qiskit.circuit import QuantumCircuit
from qiskit_pasqal_provider.providers.gate import HamiltonianGate, InterpolatePoints
from qiskit_pasqal_provider.providers.sampler import SamplerV2
from qrmi import QRMIService
from qrmi.primitives.pasqal.sampler import QRMIPasqalBackend

[qrmi] = QRMIService().resources()
ramp = InterpolatePoints(values=[0, 4, 4, 0], times=[0, 0.2, 0.8, 1])
detuning = InterpolatePoints(values=[-10, -10, 6, 6], times=[0, 0.2, 0.8, 1])
places = [[0, 0], [3, 5.2], [6, 0]]
gate = HamiltonianGate(ramp, detuning, 0.0, places, grid_transform="triangular")
circuit = QuantumCircuit(3)
circuit.append(gate, circuit.qubits)
job = SamplerV2(QRMIPasqalBackend(qrmi=qrmi)).run([circuit], shots=100)
print(sum(job.result()[0].data.counts.values()))
"""


@pytest.mark.slow
def test_the_example_of_qiskits_pasqal_provider_runs(under_lease):
    """On an emulator, it builds its sequence for `DigitalAnalogDevice`."""
    printed = under_lease("EMU_FREE", *script(PROVIDER_SAMPLER)).splitlines()

    assert printed[-1] == "100"
