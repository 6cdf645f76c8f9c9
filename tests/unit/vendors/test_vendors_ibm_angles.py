"""The angles of `rzz`, which IBM's QPUs have from 0 to π/2 only."""

from __future__ import annotations

import math
import random

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit_ibm_runtime.utils.utils import is_valid_rzz_pub

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm.angles import check_angles
from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.registry import load_vendor


def check(circuit: QuantumCircuit, values: object) -> None:
    parameters = {"pubs": [[to_openqasm(circuit), values, 10]]}
    load_vendor("ibm").check(
        {"program_id": "sampler", "parameters": parameters}, qpu="ibm_fez", target=None
    )


@pytest.mark.parametrize("angle", ["0", "0.3", "pi/2", "π / 2", "-1e-12", "2*pi/4", "arccos(0.0)"])
def test_an_angle_that_the_qpu_has_is_accepted(angle):
    check_angles((angle,), {}, "the circuit")


@pytest.mark.parametrize(
    ("angle", "message"),
    [
        ("-0.3", "the angle of an rzz gate is -0.3; must be in"),
        ("1.6", "is 1.6; must be in"),
        ("pi", "is pi = 3.14159"),
        ("-(pi/2)", "= -1.5708"),
        ("2**3 % 3", "= 2"),
        ("0.0/0.0", "= nan"),
        ("log(0)", "= -inf"),
        ("tau", r"must be in \[0, π/2\] \(IBM's error 1517\)"),
    ],
)
def test_another_angle_is_refused(angle, message):
    with pytest.raises(PayloadError, match=message):
        check_angles(("0.1", angle), {}, "the circuit")


@pytest.mark.parametrize("angle", ["f(1)", "a", "sin", "1 +", "x[0]", "'a'", "1 if 1 else 2", "1j"])
def test_an_expression_that_is_not_understood_is_left_to_the_vendor(angle):
    check_angles((angle,), {}, "the circuit")


@pytest.mark.parametrize("seed", range(30))
def test_ibms_own_check_agrees(seed):
    """For numbers, parameters and expressions, also inside of control flow, and broadcast."""
    chance = random.Random(seed)
    a, b = Parameter("a"), Parameter("pi")
    choices = [chance.uniform(-0.2, 1.7), a, a + b, 2 * a - b / 3, a * b, a.sin(), math.pi / 2]
    circuit = QuantumCircuit(2, 1)
    circuit.rx(a, 0)
    circuit.rx(b, 0)
    circuit.measure(0, 0)
    circuit.rzz(chance.choice(choices), 0, 1)
    with circuit.if_test((0, 1)):
        circuit.rzz(chance.choice(choices), 0, 1)
    values = [[chance.uniform(0, 1.2), chance.uniform(-0.2, 0.8)] for _ in range(2)]
    refused = bool(is_valid_rzz_pub(SamplerPub.coerce((circuit, values))))

    if refused:
        with pytest.raises(PayloadError, match="1517"):
            check(circuit, values)
    else:
        check(circuit, values)
