"""`qpu run` with circuit and sequence files, and `qpu target` with its cache."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pulser
import pytest
from emulator_clients import blockade
from qiskit import ClassicalRegister, QuantumCircuit, generate_preset_pass_manager, qasm3, qpy
from qiskit.circuit import Parameter
from qiskit.quantum_info import Statevector

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.cli import main
from qrmi_workflows.client.targets import cached_target, fetch_target
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import PayloadError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.results import result_schema
from qrmi_workflows.vendors.ibm import transpiler_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The outcome of a command."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Completed]

ISA_BELL = """OPENQASM 3.0;
include "stdgates.inc";
bit[2] c;
rz(pi/2) $0; sx $0; rz(pi/2) $0;
rz(pi/2) $1; sx $1; rz(pi/2) $1;
cz $0, $1;
rz(pi/2) $1; sx $1; rz(pi/2) $1;
c[0] = measure $0; c[1] = measure $1;
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(
    emulator: Emulator,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Return a function that runs `qpu` in its own folder, as a user of the shared emulator."""
    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Completed:
        capfd.readouterr()
        code: object = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        output = capfd.readouterr()
        return Completed(exit_code=int(code or 0), stdout=output.out, stderr=output.err)

    return command


def transpiled(run: Run, circuit: QuantumCircuit) -> QuantumCircuit:
    """Transpile as a user does without access to the QPU, with the file from `qpu target`."""
    assert run("target", "ibm_strict", "-o", "target.json").exit_code == 0
    target = transpiler_target(Path("target.json").read_text())
    return generate_preset_pass_manager(1, target=target, seed_transpiler=1).run(circuit)


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


def test_a_circuit_in_openqasm_is_sampled(run):
    """It runs on a QPU that accepts only its native gates."""
    Path("circuit.qasm").write_text(qasm3.dumps(transpiled(run, bell())))

    done = run("run", "circuit.qasm", "--shots", 1000, "-o", "r.json", "--qpu", "ibm_strict")

    assert done.exit_code == 0, done.stderr
    result = QuantumResult.load("r.json")
    assert set(result.counts()) == {"00", "11"}
    assert sum(result.counts().values()) == 1000
    bits = result.to_numpy()["meas"]
    assert bits.shape == (1000, 2)
    assert (bits[:, 0] == bits[:, 1]).all()
    assert int(bits[:, 0].sum()) == result.counts()["11"]


def test_circuits_in_qpy_are_sampled(run):
    """Each circuit in the file becomes a PUB."""
    isa, flipped = transpiled(run, bell()), QuantumCircuit(1)
    flipped.x(0)
    flipped.measure_all()
    with Path("circuits.qpy").open("wb") as file:
        qpy.dump([isa, transpiled(run, flipped)], file)

    done = run("run", "circuits.qpy", "--shots", 50, "-o", "r.json", "--qpu", "ibm_strict")

    assert done.exit_code == 0, done.stderr
    result = QuantumResult.load("r.json")
    assert set(result.counts(pub=0)) == {"00", "11"}
    assert result.counts(pub=1) == {"1": 50}


def test_options_without_effect_are_named_on_the_terminal_and_in_the_file(run, caplog):
    """They have an effect on a QPU, so that an emulated result without them would mislead."""
    options = {
        "dynamical_decoupling": {"enable": True},
        "twirling": {"enable_gates": False, "enable_measure": True},
        "default_shots": 10,
    }
    parameters = {"version": 2, "support_qiskit": True, "pubs": [[ISA_BELL]], "options": options}
    payload = {"program_id": "sampler", "parameters": parameters}
    Path("payload.json").write_text(json.dumps(payload))

    done = run("run", "payload.json", "-o", "r.json", "--qpu", "ibm_fez")

    assert done.exit_code == 0, done.stderr
    result = QuantumResult.load("r.json")
    names = ("options.dynamical_decoupling.enable = True", "options.twirling.enable_measure = True")
    assert result.warnings == tuple(f"{name} has no effect on an emulated QPU" for name in names)
    assert all(warning in caplog.text for warning in result.warnings)
    jsonschema.validate(json.loads(Path("r.json").read_text()), result_schema())


def test_every_bit_of_a_file_is_in_the_result_under_its_name(run):
    """A scalar bit is not a register, and `crz` and `Up` are renamed on the way to the vendor."""
    Path("bits.qasm").write_text(
        """OPENQASM 3.0;
        include "stdgates.inc";
        bit heads;
        bit[2] Up;
        bit late = measure $1;
        x $0;
        heads = measure $0;
        Up[1] = measure $0;
        if (heads) { x $1; }
        late = measure $1;
        """
    )
    isa = transpiled(run, bell())
    circuit = QuantumCircuit(isa.qubits, ClassicalRegister(1, "crz"))
    circuit.measure(0, 0)
    with Path("bits.qpy").open("wb") as file:
        qpy.dump(circuit, file)

    for name in ("bits.qasm", "bits.qpy"):
        done = run("run", name, "--shots", 9, "-o", f"{name}.json", "--qpu", "ibm_fez")
        assert done.exit_code == 0, done.stderr

    registers = QuantumResult.load("bits.qasm.json").data[0]["registers"]
    counts = {name: register["counts"] for name, register in registers.items()}
    assert counts == {"heads": {"1": 9}, "Up": {"10": 9}, "late": {"1": 9}}
    assert QuantumResult.load("bits.qpy.json").counts("crz") == {"0": 9}


def test_observables_of_a_circuit_are_estimated(run):
    """For |00> + |11>, ZZ and XX are 1, ZI is 0, and ZZ + XX is 2."""
    isa = transpiled(run, bell().remove_final_measurements(inplace=False))
    places = isa.layout.final_index_layout()
    Path("circuit.qasm").write_text(qasm3.dumps(isa))

    def placed(label: str) -> str:
        letters = ["I"] * isa.num_qubits
        for qubit, letter in zip(places, reversed(label), strict=True):
            letters[-1 - qubit] = letter
        return "".join(letters)

    zz, xx, zi = placed("ZZ"), placed("XX"), placed("ZI")
    Path("observables.json").write_text(json.dumps([zz, xx, zi, {zz: 1.0, xx: 1.0}]))

    done = run(
        *("run", "circuit.qasm", "--observables", "observables.json", "--precision", 0),
        *("-o", "r.json", "--qpu", "ibm_strict"),
    )

    assert done.exit_code == 0, done.stderr
    values, _ = QuantumResult.load("r.json").expectation_values()
    assert values == pytest.approx([1, 1, 0, 2], abs=1e-9)
    assert QuantumResult.load("r.json").to_numpy()["evs"].tolist() == values


def test_a_sequence_in_pulsers_abstract_representation_is_sampled(run):
    """Two atoms within the blockade radius share one excitation."""
    with open_lease("FRESNEL") as lease:
        device = lease.pulser_connection().fetch_available_devices()["FRESNEL"]
    Path("sequence.json").write_text(blockade(device))

    done = run("run", "sequence.json", "--shots", 100, "-o", "r.json", "--qpu", "FRESNEL")

    assert done.exit_code == 0, done.stderr
    counts = QuantumResult.load("r.json").counts()
    assert sum(counts.values()) == 100
    assert counts.get("00", 0) + counts.get("11", 0) < 8


def assert_refused(emulator: Emulator, run: Run, arguments: list[Any], *fragments: str) -> None:
    """Check that `qpu run` fails with a message before it opens a session or submits a task."""
    before = emulator.counters()
    done = run("run", *arguments, "-o", "r.json")
    assert done.exit_code == 2, done.stderr
    for text in fragments:
        assert text in done.stderr
    after = emulator.counters()
    assert (after["tasks"], after["sessions"]) == (before["tasks"], before["sessions"])
    assert not Path("r.json").exists()


def test_bad_files_are_refused_before_a_lease(run, emulator):
    """The message says what is allowed. The vendor receives no request except for the target."""
    Path("h.qasm").write_text(qasm3.dumps(bell()))
    free = QuantumCircuit(1)
    free.rz(Parameter("a"), 0)
    free.measure_all()
    Path("free.qasm").write_text(qasm3.dumps(free))
    Path("old.qasm").write_text('OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[1];\n')
    whole = io.BytesIO()
    qpy.dump(bell(), whole)
    Path("half.qpy").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    Path("other.json").write_text(blockade(pulser.AnalogDevice))
    Path("noise.bin").write_bytes(os.urandom(100))
    with Path("large.json").open("wb") as file:
        file.truncate(100_000_000)
    ibm, pasqal = ["--qpu", "ibm_fez"], ["--qpu", "FRESNEL"]
    assert_refused(
        emulator, run, ["h.qasm", *ibm], "not ISA for QPU 'ibm_fez'", "no gate 'h'", "rz, rzz"
    )
    assert_refused(emulator, run, ["free.qasm", *ibm], "unbound parameters: a")
    assert_refused(emulator, run, ["old.qasm", *ibm], "OpenQASM 2; must be OpenQASM 3")
    assert_refused(emulator, run, ["half.qpy", *ibm], "not a complete QPY file")
    assert_refused(emulator, run, ["noise.bin", *ibm], "unknown file format", "OpenQASM 3 (.qasm)")
    assert_refused(emulator, run, ["large.json", *ibm], "100.0 MB; must be at most 50 MB")
    assert_refused(
        emulator, run, ["h.qasm", "--shots", 0, *ibm], "shots=0: must be a positive integer"
    )
    assert_refused(emulator, run, ["h.qasm", "--shots", -1, *ibm], "shots=-1")
    assert_refused(emulator, run, ["other.json", *pasqal], "needs a number of shots")
    assert_refused(
        emulator,
        run,
        ["other.json", "--shots", 5, *pasqal],
        "'AnalogDevice'; on QPU 'FRESNEL', it must be one of",
    )
    assert_refused(
        emulator, run, ["h.qasm", "--observables", "none.json", *ibm], "cannot read the observables"
    )


@contextmanager
def failing(emulator: Emulator) -> Iterator[None]:
    """Make the vendor reject every request."""
    emulator.control.ask("POST", "/faults", {"kind": "status", "status": 403})
    try:
        yield
    finally:
        emulator.control.ask("DELETE", "/faults")


def test_a_target_is_fetched_once_and_shows_its_calibration_date(run, emulator, cache):
    """No lease is needed, and the second request does not even reach the vendor."""
    first = run("target", "ibm_fez")
    (cached,) = (cache / "qrmi-workflows" / "targets").iterdir()
    with failing(emulator):
        again = run("target", "ibm_fez")
        transpiler_target(again.stdout)
        assert run("target", "ibm_fez", "--refresh").exit_code == 1
        os.utime(cached, (time.time() - 7 * 3600,) * 2)
        assert run("target", "ibm_fez").exit_code == 1
        assert run("target", "ibm_fez", "--max-age", 8).exit_code == 0

    assert first.exit_code == again.exit_code == 0
    assert first.stdout == again.stdout
    assert "calibrated 2025-02-26T15:16:25-05:00, fetched 20" in again.stderr
    assert run("target", "ibm_fez").exit_code == 0
    assert time.time() - cached.stat().st_mtime < 60


def test_a_stale_target_alone_refuses_nothing(run, emulator, cache):
    """The QPU has since allowed more shots: the live target decides, in a command and a program."""
    text = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
    Path("x.qasm").write_text(text)
    assert run("target", "ibm_fez").exit_code == 0
    (cached,) = (cache / "qrmi-workflows" / "targets").iterdir()
    stale = json.loads(cached.read_text())
    stale["configuration"]["max_shots"] = 5

    def let_the_cache_be_stale():
        cached.write_text(json.dumps(stale))
        os.utime(cached, (time.time() - 3600,) * 2)

    let_the_cache_be_stale()
    command = ("run", "x.qasm", "--shots", 6, "-o", "r.json", "--qpu", "ibm_fez")
    with failing(emulator):
        refused = run(*command)
    assert refused.exit_code == 2
    assert "shots=6: must be at most 5" in refused.stderr
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    assert QuantumResult.load("r.json").counts() == {"1": 6}

    let_the_cache_be_stale()
    with open_lease("ibm_fez", step="stale") as lease:
        assert lease.run("x.qasm", shots=7).counts() == {"1": 7}
        with pytest.raises(PayloadError, match="shots=100001: must be at most 100000"):
            lease.check("x.qasm", shots=100_001)


def test_a_circuit_with_fractional_gates_runs_if_they_were_asked_for(run):
    """IBM's Heron QPUs have them; the QPU of this test accepts only its native gates."""
    assert run("target", "ibm_strict", "-o", "target.json").exit_code == 0
    text = Path("target.json").read_text()
    circuit = QuantumCircuit(2)
    circuit.rx(0.3, 0)
    circuit.rzz(-0.4, 0, 1)
    circuit.rx(-0.3, 0)
    circuit.measure_all()
    kept, left_out = (
        generate_preset_pass_manager(
            3, target=transpiler_target(text, use_fractional_gates=use), seed_transpiler=1
        ).run(circuit)
        for use in (True, False)
    )
    assert "rzz" in kept.count_ops()
    assert not {"rx", "rzz"} & set(left_out.count_ops())

    for number, isa in enumerate((kept, left_out)):
        with Path("isa.qpy").open("wb") as file:
            qpy.dump(isa, file)
        arguments = ("--shots", 4000, "-o", f"{number}.json", "--qpu", "ibm_strict")
        done = run("run", "isa.qpy", *arguments)
        assert done.exit_code == 0, done.stderr

    counts = [QuantumResult.load(f"{number}.json").counts().get("00", 0) for number in (0, 1)]
    exact = Statevector(circuit.remove_final_measurements(inplace=False)).probabilities()[0]
    assert counts == pytest.approx([4000 * exact] * 2, abs=5 * (4000 * exact * (1 - exact)) ** 0.5)


def test_an_unusable_cache_is_ignored(run, cache):
    """The cache's folder is a file, then the cached target is not a valid one."""
    cache.write_text("in the way")
    assert run("target", "ibm_fez").exit_code == 0
    cache.unlink()
    assert run("target", "ibm_fez").exit_code == 0
    (cached,) = (cache / "qrmi-workflows" / "targets").iterdir()
    cached.write_text('{"configuration": null}')

    done = run("target", "ibm_fez")

    assert json.loads(done.stdout)["configuration"]["backend_name"] == "ibm_fez"
    assert json.loads(cached.read_text())["configuration"]


def test_targets_are_cached_per_endpoint(run, emulator, cache):
    """The cache distinguishes endpoints, ignores credentials, expires, and holds no secrets."""
    found = find_qpu("ibm_fez", config=emulator.config_path)
    text = fetch_target(found).text
    settings = dict(found.environment)

    renewed = {**settings, "QRMI_IBM_QCS_IAM_APIKEY": "x"}
    elsewhere = {**settings, "QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1"}

    cached = cached_target(replace(found, environment=renewed))
    assert cached
    assert cached.text == text
    assert cached_target(replace(found, environment=elsewhere)) is None
    assert cached_target(found, max_age_hours=0) is None
    old = next((cache / "qrmi-workflows" / "targets").iterdir()).with_name("old-0.json")
    old.write_text("{}")
    os.utime(old, (time.time() - 31 * 86400,) * 2)
    fetch_target(found, refresh=True)
    assert not old.exists()
    for file in cache.rglob("*.json"):
        content = file.name + file.read_text()
        assert not [value for key, value in settings.items() if "KEY" in key and value in content]
