"""Classical registers come back under the names that users gave them."""

from __future__ import annotations

import json
import random
import re

import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm3
from qiskit.circuit import Clbit

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.ibm.registers import as_written, with_registers
from qrmi_workflows.vendors.registry import load_vendor

# Gates, keywords and constants of OpenQASM 3 and of Python, names that are none in OpenQASM 2,
# attributes of results, and what looks like the names that are sent instead.
NAMES = [
    *("crz", "crx", "x", "pi", "τ", "input", "bit", "U", "measure", "let", "gphase", "euler"),
    *("lambda", "class", "Meas", "_c", "θ", "my-reg", "a b", "c[0]", "ψ1", "1st", "esc_a"),
    *("size", "shape", "keys", "evs", "crz_0", "input_0", "as_written_x", "as_written_hex_78"),
    *("hex_78", "q", "q_0", "meas", "loose_bits", "_bit0", "parameter_0", "switch_dummy"),
]


def on_the_wire(circuit: str) -> str:
    """Return a circuit as the vendor gets it."""
    content = {"program_id": "sampler", "parameters": {"pubs": [[circuit, None, 1]]}}
    fields = load_vendor("ibm").encode(content).fields
    text: str = json.loads(fields["input"])["pubs"][0][0]
    return text


def names_of_results(circuit: str) -> list[str]:
    """Return the registers of a circuit as Qiskit's importer, and so the service, names them."""
    return [as_written(register.name) for register in qasm3.loads(on_the_wire(circuit)).cregs]


@pytest.mark.parametrize("seed", range(20))
def test_names_survive_export_and_import(seed):
    names = random.Random(seed).sample(NAMES, 12)
    registers = [ClassicalRegister(1 + rank % 3, name) for rank, name in enumerate(names)]
    circuit = QuantumCircuit(QuantumRegister(3, "q"), *registers)
    for register in registers:
        circuit.measure(range(len(register)), register)
    with circuit.if_test((registers[0], 1)):
        circuit.crz(0.1, 0, 1)

    assert names_of_results(to_openqasm(circuit)) == names


@pytest.mark.parametrize("name", NAMES)
def test_each_name_survives_alone(name):
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(1, name))
    circuit.measure(0, 0)

    exported = to_openqasm(circuit)

    assert names_of_results(exported) == [name]
    assert on_the_wire(exported) == exported, "what has been renamed once is not renamed again"


def test_bits_outside_of_registers_get_one():
    circuit = QuantumCircuit(QuantumRegister(3, "q"), [Clbit(), Clbit()], ClassicalRegister(1, "c"))
    circuit.measure([0, 1, 2], [0, 1, 2])
    before = circuit.copy()

    imported = qasm3.loads(to_openqasm(circuit))

    assert [(each.name, each.size) for each in imported.cregs] == [("c", 1), ("loose_bits", 2)]
    assert circuit == before, "the user's circuit is not changed"


def test_registers_that_share_bits_keep_their_names():
    """They are exported as aliases."""
    bits = [Clbit() for _ in range(3)]
    circuit = QuantumCircuit(QuantumRegister(2, "q"), bits)
    circuit.add_register(ClassicalRegister(name="crz", bits=bits[:2]))
    circuit.add_register(ClassicalRegister(name="al", bits=bits[1:]))
    circuit.measure([0, 1], [0, 1])

    exported = to_openqasm(circuit)

    assert re.findall("^let (\\w+) = ", exported, re.MULTILINE) == ["as_written_crz", "al"]
    assert "as_written_crz[0] = measure q[0];" in exported
    assert on_the_wire(exported) == exported


@pytest.mark.parametrize(
    ("program", "sent"),
    [
        (
            "bit a;\nbit[1] b; // a\na = measure $0; b[0] = measure $1; if (a) x $1;",
            "bit[1] a;\nbit[1] b; // a\na[0] = measure $0; b[0] = measure $1; if (a[0]) x $1;",
        ),
        ("bit a = measure $0;", "bit[1] a; a[0] = measure $0;"),
        ("creg a; measure $0 -> a;", "bit[1] a; measure $0 -> a[0];"),
        ("bit[2] Meas; Meas = measure q;", "bit[2] as_written_Meas; as_written_Meas = measure q;"),
        ("bit a; bit b; a = b;", "bit[1] a; bit[1] b; a[0] = b[0];"),
        ("creg c[2]; bit[1] d; bit  [3] e;", "creg c[2]; bit[1] d; bit  [3] e;"),
        ("bit _bit0; let c = {_bit0};", "bit _bit0; let c = {_bit0};"),
        ('include "bit a;"; /* bit a; */', 'include "bit a;"; /* bit a; */'),
    ],
)
def test_every_bit_of_a_program_is_sent_in_a_register(program, sent):
    assert on_the_wire(program) == sent


def test_a_name_with_two_meanings_is_refused():
    program = "bit a; def f(bit a) -> bit { return a; } a = measure $0;"

    with pytest.raises(PayloadError, match=r"bit or register 'a' cannot be returned .* Rename one"):
        with_registers(program)
