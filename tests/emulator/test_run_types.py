"""`qpu run` on a QPU of each resource type, with payloads as QRMI's `task_runner` takes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import Parameter
from qiskit_ibm_runtime.options_models.executor import ExecutorOptions
from qiskit_ibm_runtime.quantum_program import QuantumProgram
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS
from samplomatic import build
from samplomatic.transpiler import generate_boxing_pass_manager
from waiting import wait_until

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator

GARNET, FELIS = "garnet_mock", "ab_emu_40q_logical_noiseless"


def operation(name: str, *qubits: int, **args: Any) -> dict[str, Any]:
    return {"name": name, "locus": [f"QB{qubit}" for qubit in qubits], "args": args}


def bell(*keys: str, shots: int = 400) -> dict[str, Any]:
    """Return IQM's circuit of a Bell pair, with angles in radians."""
    turns = [operation("prx", qubit, angle=pi / 2, phase=pi / 2) for qubit in (1, 2)]
    back = operation("prx", 2, angle=-pi / 2, phase=pi / 2)
    measured = (
        [operation("measure", 1, 2, key=keys[0])]
        if len(keys) == 1
        else [operation("measure", qubit, key=key) for qubit, key in enumerate(keys, 1)]
    )
    instructions = [*turns, operation("cz", 1, 2), back, *measured]
    return {"circuits": [{"name": "bell", "instructions": instructions}], "shots": shots}


def qir() -> str:
    """Return the QIR program of a Bell pair."""
    one = "inttoptr (i64 1 to %{0}*)"
    lines = [
        "@__quantum__qis__h__body(%Qubit* null)",
        f"@__quantum__qis__cx__body(%Qubit* null, %Qubit* {one.format('Qubit')})",
        "@__quantum__qis__mz__body(%Qubit* null, %Result* null)",
        f"@__quantum__qis__mz__body(%Qubit* {one.format('Qubit')}, "
        f"%Result* {one.format('Result')})",
    ]
    calls = "".join(f"  call void {line}\n" for line in lines)
    return f"define void @main() #0 {{\nentry:\n{calls}  ret void\n}}\n"


def environment(emulator: Emulator, folder: Path) -> dict[str, str]:
    """Return the environment of a user that names only the site's QPUs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    own = {"QPU_CONFIG": str(emulator.config_path), "QPU_STATE": str(folder / "state")}
    return kept | own | {"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}


def run(
    emulator: Emulator, folder: Path, qpu: str, payload: object, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run `qpu run` as that user."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    (folder / "payload").write_text(text)
    command = ["run", "payload", "-o", "r.json", "--qpu", qpu, *options]
    return subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", *command],
        env=environment(emulator, folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_bell(counts: dict[str, int], shots: int) -> None:
    """A Bell pair's bits are equal, and each value is as frequent as the other."""
    assert set(counts) == {"00", "11"}
    assert sum(counts.values()) == shots
    assert abs(counts["00"] - shots / 2) < 5 * (shots / 4) ** 0.5


def test_iqms_circuits_run(emulator, tmp_path):
    """The payload of QRMI's generator, with the keys of iqm-client's Qiskit backend."""
    iqmjson = bell("meas_2_0_0", "meas_2_0_1")
    payload = {"iqmjson": iqmjson, "job_type": "circuit", "use_timeslot": False, "tag": None}

    done = run(emulator, tmp_path, GARNET, payload)

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert (result.type, result.program) == ("iqm-server", "circuit")
    check_bell(result.counts("meas"), 400)
    assert result.to_numpy()["meas"].shape == (400, 2)


def test_iqms_counts_are_enough(emulator, tmp_path):
    """A server that does not keep the bits of each shot has their counts; one register has all."""
    payload = {"iqmjson": bell("a", "b"), "job_type": "circuit"}

    done = run(emulator, tmp_path, "garnet_counts", payload)

    assert done.returncode == 0, done.stderr
    check_bell(QuantumResult.load(tmp_path / "r.json").counts("a_b"), 400)


@pytest.mark.parametrize(("qpu", "is_booked"), [("garnet_counts", True), (GARNET, False)])
def test_an_iqm_task_runs_in_a_timeslot_if_one_is_booked(emulator, tmp_path, qpu, is_booked):
    payload = {"iqmjson": bell("a", "b"), "job_type": "circuit", "use_timeslot": True}

    done = run(emulator, tmp_path, qpu, payload)

    assert done.returncode == (0 if is_booked else 1), done.stderr
    assert is_booked or "`use_timeslot` and no timeslot of garnet_mock is booked" in done.stderr
    run(emulator, tmp_path, qpu, payload | {"use_timeslot": False})
    assert (tmp_path / "r.json").exists()


def test_iqms_circuits_alone_run_with_other_shots(emulator, tmp_path):
    """A measurement of several qubits is one register."""
    done = run(emulator, tmp_path, GARNET, bell("m"), "--shots", "100")

    assert done.returncode == 0, done.stderr
    check_bell(QuantumResult.load(tmp_path / "r.json").counts(), 100)


@pytest.mark.parametrize(
    ("payload", "options"),
    [({"human_qir": qir(), "input_params": {"nbShots": 400}}, ()), (qir(), ("--shots", "400"))],
)
def test_felis_programs_run(emulator, tmp_path, payload, options):
    """As a payload of `task_runner`, and as a file of QIR."""
    done = run(emulator, tmp_path, FELIS, payload, *options)

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert (result.type, result.program) == ("alice-bob-felis", "qir")
    check_bell(result.counts("results"), 400)


@pytest.mark.parametrize(
    ("qpu", "payload", "message"),
    [
        (GARNET, {"iqmjson": bell("m", shots=0), "job_type": "circuit"}, "['shots']=0: must be"),
        (
            GARNET,
            {"iqmjson": {**bell("m"), "circuits": []}, "job_type": "circuit"},
            "['circuits']=[]: must be a list of one or more",
        ),
        (FELIS, {"human_qir": qir(), "input_params": {"nbShot": 5}}, "unknown parameter 'nbShot'"),
        (
            FELIS,
            {"human_qir": qir().replace("i64 1 ", "i64 40 "), "input_params": {"nbShots": 5}},
            "uses 41 qubits; must be at most 40",
        ),
        (FELIS, {"iqmjson": bell("m"), "job_type": "circuit"}, "cannot run on QPU"),
    ],
)
def test_a_bad_payload_is_refused_before_the_vendor_sees_it(
    emulator, tmp_path, qpu, payload, message
):
    before = emulator.counters()["tasks"]["accepted"]

    done = run(emulator, tmp_path, qpu, payload)

    assert done.returncode == 2
    assert message in done.stderr
    assert emulator.counters()["tasks"]["accepted"] == before


def test_a_gate_where_the_qpu_has_none_is_refused(emulator, tmp_path):
    """The target says where: the emulated Garnet has no coupler from qubit 1 to qubit 3."""
    iqmjson = bell("m")
    iqmjson["circuits"][0]["instructions"][2]["locus"] = ["QB1", "QB3"]

    done = run(emulator, tmp_path, GARNET, {"iqmjson": iqmjson, "job_type": "circuit"})

    assert done.returncode == 2
    assert "has no 'cz' on QB1-QB3" in done.stderr


def executor() -> dict[str, Any]:
    """Return the payload of an executor as QRMI's generator writes it.

    It has a circuit with two sets of parameter values, and a twirled one.
    """
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS["v2.0"]
    turned, angle = QuantumCircuit(2, name="turned"), Parameter("angle")
    turned.sx(0)
    turned.rz(angle + pi, 0)
    turned.sx(0)
    turned.measure_all()
    twirled = QuantumCircuit(2)
    twirled.x(0)
    twirled.cz(0, 1)
    twirled.measure_all()
    manager = generate_boxing_pass_manager(enable_gates=True, enable_measures=True)
    template, samplex = build(manager.run(twirled))
    program = QuantumProgram(shots=50)
    program.append_circuit_item(turned, circuit_arguments=np.array([[0.0], [pi]]))
    program.append_samplex_item(template, samplex=samplex, samplex_arguments={}, shape=(3,))
    params = converter.encoder(program, ExecutorOptions())
    return {"program_id": "executor", "parameters": params.model_dump(mode="json")}


@pytest.mark.parametrize("qpu", ["ibm_fez", "ibm_system"])
def test_ibms_executor_runs(emulator, tmp_path, qpu):
    """Each set of values has its shots; the bits of a register start with bit 0.

    The twirled measurements come with their flips, which the client takes back.
    """
    done = run(emulator, tmp_path, qpu, executor(), "--shots", "40")

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    bits = result.to_numpy(pub=0)["meas"]
    assert bits.shape == (2, 40, 2)
    assert not bits[0].any()
    assert bits[1, :, 0].all()
    assert not bits[1, :, 1].any()
    twirled = result.to_numpy(pub=1)
    (flips,) = (array for name, array in twirled.items() if name.startswith("measurement_flips"))
    assert (np.logical_xor(twirled["meas"], flips) == [True, False]).all()
    converted = result.convert("to_quantum_program_result")
    assert (converted[0]["meas"] == bits).all()


def test_ibms_noise_learner_runs(emulator, tmp_path):
    """The layers of a circuit, and their errors: the emulator has none by default."""
    circuit = QuantumCircuit(4)
    circuit.cz([0, 2], [1, 3])
    circuit.cz(1, 2)
    circuit.cz([0, 2], [1, 3])
    parameters = {"circuits": [qasm3.dumps(circuit)], "options": {"max_layers_to_learn": 3}}
    payload = {"program_id": "noiselearner", "parameters": parameters}

    done = run(emulator, tmp_path, "ibm_fez", payload)

    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    learned = result.convert("to_noise_learner_result")
    assert [layer.qubits for layer in learned] == [[0, 1, 2, 3], [1, 2]]
    assert len(learned[1].error.generators) == 15
    assert not any(layer.error.rates.any() for layer in learned)
    assert len(result.data) == 2


def test_a_program_that_qrmi_does_not_know_is_refused(emulator, tmp_path):
    payload = {"program_id": "noise-learner", "parameters": {"circuits": ["OPENQASM 3.0;"]}}

    done = run(emulator, tmp_path, "ibm_fez", payload)

    assert done.returncode == 2
    assert "'noise-learner' is not one of ['sampler', 'estimator', 'executor'," in done.stderr


def test_a_type_that_only_qrmi_knows_takes_a_payload_as_it_is(emulator, tmp_path):
    """It is sent with a note; the result file has the vendor's text, and the exit code is 0.

    QRMI takes this spelling of `iqm-server`, and no vendor has registered it.
    """
    document = json.loads(emulator.config_path.read_text())
    resources = [each for each in document["resources"] if each["name"] == GARNET]
    config = tmp_path / "qrmi_config.json"
    config.write_text(json.dumps({"resources": [{**resources[0], "type": "iqm-ser-ver"}]}))
    payload = {"iqmjson": bell("m"), "job_type": "circuit"}

    done = run(emulator, tmp_path, GARNET, payload, "--config", str(config))

    assert done.returncode == 0, done.stderr
    assert "has the QPU's type 'iqm-ser-ver', so the payload is passed on" in done.stderr
    result = QuantumResult.load(tmp_path / "r.json")
    assert result.type == "iqm-ser-ver"
    assert len(json.loads(result.vendor_result)["measurements"][0]["m"]) == 400
    assert "no decoder" in str(result.decode_error)


def test_a_payload_that_qrmi_cannot_make_is_refused(emulator, tmp_path):
    document = json.loads(emulator.config_path.read_text())
    resources = [each for each in document["resources"] if each["name"] == GARNET]
    config = tmp_path / "qrmi_config.json"
    config.write_text(json.dumps({"resources": [{**resources[0], "type": "iqm-ser-ver"}]}))

    done = run(emulator, tmp_path, GARNET, {"circuits": []}, "--config", str(config))

    assert done.returncode == 2
    assert "keys (circuits) do not match any of QRMI's payloads; must be" in done.stderr


MEASURE = {"circuits": [{"instructions": [operation("measure", 1, key="m")]}], "shots": 1}


def set_availability(emulator: Emulator, qpu: str, availability: str) -> None:
    emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": availability})


def stop_run(
    emulator: Emulator,
    folder: Path,
    qpu: str,
    signum: int,
    starts_at_signal: bool = False,
) -> tuple[int, str]:
    """Send a signal to `qpu run` once its task is submitted; return its exit code and messages.

    If its QPU is paused, the task may start when the signal is sent.
    """
    (folder / "payload").write_text(json.dumps({"iqmjson": MEASURE, "job_type": "circuit"}))
    argv = [sys.executable, "-m", "qrmi_workflows", "run", "payload", "-o", "r.json"]
    command = subprocess.Popen(
        [*argv, "--qpu", qpu],
        env=environment(emulator, folder),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = folder / "state" / "journal" / "open"
    wait_until(
        lambda: any("submitted" in record.read_text() for record in journal.glob("*/*/*.json")),
        "the record of the submitted task",
    )
    command.send_signal(signum)
    if starts_at_signal:
        set_availability(emulator, qpu, "online")
    _, messages = command.communicate(timeout=60)
    return command.returncode, messages


def test_a_stopped_run_on_iqm_says_what_becomes_of_its_task(emulator, tmp_path):
    """QRMI's client waits for the task's end, up to 30 s, before it answers or cancels.

    The run tries to cancel the task, and says that it may still be running: a rerun finds it.
    """
    returncode, messages = stop_run(emulator, tmp_path, "adonis", signal.SIGTERM)

    assert returncode == 128 + signal.SIGTERM
    assert "may still be running; rerun the step to check" in messages


@pytest.mark.parametrize(
    ("qpu", "signum", "starts_at_signal"),
    [
        ("adonis_brief", signal.SIGKILL, False),
        ("adonis_brief", signal.SIGTERM, True),  # the task ends while it is being cancelled
        ("adonis_longer", signal.SIGTERM, False),  # it ends after the run has given up
    ],
)
def test_a_killed_run_on_iqm_and_its_rerun_pay_once(
    emulator, tmp_path, qpu, signum, starts_at_signal
):
    """The same command, run again, has the result of the task that the first run submitted."""
    before = emulator.counters()["qpus"][qpu]["tasks"]
    set_availability(emulator, qpu, "paused")  # the task must not end before the signal
    try:
        stop_run(emulator, tmp_path, qpu, signum, starts_at_signal)
    finally:
        set_availability(emulator, qpu, "online")

    again = run(emulator, tmp_path, qpu, {"iqmjson": MEASURE, "job_type": "circuit"})

    assert again.returncode == 0, again.stderr
    assert QuantumResult.load(tmp_path / "r.json").qpu == qpu
    after = emulator.counters()["qpus"][qpu]["tasks"]
    assert after["accepted"] - before["accepted"] == after["completed"] - before["completed"] == 1
