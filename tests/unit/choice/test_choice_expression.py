"""The expressions of `where=`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from qrmi_workflows.choice.expression import FIELDS, Expression, compile_expression
from qrmi_workflows.errors import RequestError

FEZ = {
    "name": "ibm_fez",
    "type": "ibm-quantum-compute-service",
    "vendor": "ibm",
    "qubits": 156,
    "gates": frozenset({"cz", "rz"}),
    "lanes": 5,
    "state": "online",
    "queue": 12,
    "free": 0,
    "waiting": 1,
    "calibration_age": 3.25,
}


@pytest.mark.parametrize(
    "text",
    [
        "qubits >= 100",
        "100 <= qubits < 200",
        '"cz" in gates and queue < 20',
        'gates >= {"cz", "rz"}',
        'gates == {"cz", "rz"}',
        "queue == None or queue in [12, 13]",
        "5 < 1 < 3 / (qubits - 156) or qubits > 1",
        'type in ["ibm-quantum-compute-service", "pasqal-cloud"]',
        'vendor != "pasqal" and not (state == "offline")',
        'matches(name, "ibm_*")',
        "queue + waiting * 2 <= 14",
        "len(gates) == 2",
        "max(queue, waiting) < 13",
        "calibration_age < 24",
        'free > 0 or "rz" in gates',
        "queue is not None",
    ],
)
def test_an_expression_compares_what_is_known_of_a_qpu(text):
    assert Expression(text).failures(FEZ) == []


def test_each_condition_that_does_not_hold_is_named_with_the_value():
    expression = Expression('qubits >= 200 and "cz" in gates and (queue < 5 or free > 0)')

    assert expression.failures(FEZ) == [
        "`qubits >= 200`: qubits is 156",
        "`queue < 5 or free > 0`: queue is 12, free is 0",
    ]


def test_what_a_vendor_names_is_shown_without_commands_for_a_terminal():
    (reason,) = Expression('"rz" in gates').failures({"gates": frozenset({"cz\x1b[31m"})})

    assert reason == "`'rz' in gates`: gates is cz?[31m"


def test_what_is_not_known_does_not_satisfy_a_condition_but_may_be_asked_for():
    unknown = dict.fromkeys(FIELDS) | {"name": "F", "type": "pasqal-cloud"}

    assert Expression("queue < 5").failures(unknown) == ["`queue < 5`: queue not known"]
    assert Expression("queue is None or queue < 5").failures(unknown) == []
    assert Expression("queue < 5 or queue is None").failures(unknown) == []
    assert Expression("queue in (None, 0)").failures(unknown) == []
    assert Expression('type == "pasqal-cloud" or queue < 5').failures(unknown) == []


@pytest.mark.parametrize(
    "text", ['state != "offline"', "queue != 3", "not (queue == 3)", 'gates != {"cz"}']
)
def test_what_is_not_known_is_not_different_from_a_value_either(text):
    (reason,) = Expression(text).failures(dict.fromkeys(FIELDS) | {"name": "F"})
    assert reason.endswith("not known")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "qubit > 5",
            r"unknown field 'qubit'; did you mean 'qubits'\? It must be one of: name, ty",
        ),
        ("foo > 5", "unknown field 'foo'; must be one of: name, type"),
        ("qubits >", "not an expression"),
        ("qubits > 5; 1", "not an expression"),
        ("qubits = 5", "not an expression"),
        ("qubits", "`qubits` is 156, neither true nor false"),
        ("queue and qubits > 5", "`queue` is 3, neither true nor false"),
        ('qubits > "5"', "`qubits > '5'`: '>' not supported"),
        ("matches(name, 5)", "matches"),
        ("name.upper() == 'X'", r"`name.upper\(\)`: only len, min, max, abs, matches can be call"),
        ("name.__class__ == 'X'", "`name.__class__` cannot be used"),
        ("().__class__.__bases__[0] == 1", "cannot be used"),
        ("[x for x in gates] == []", "cannot be used"),
        ("(lambda: 1)() == 1", "only len, min, max, abs, matches can be called"),
        ("open('/etc/passwd') == 1", "only len, min"),
        ("__import__('os') == 1", "only len, min"),
        ("len == 5", r"`len` is a function: `len\(…\)`"),
        ("2 ** 9999 > qubits", r"`2 \*\* 9999` cannot be used"),
        ("qubits % 2 == 0", "`qubits % 2` cannot be used"),
        ("+queue < 5", r"`\+queue` cannot be used"),
        ("queue < 5 or not free", "`free` is 1, neither true nor false"),
        ("gates == 'cz'", r"compares a set with a string \(to ask for a gate: `'cz' in gates`\)"),
        ("not gates != ['cz']", "compares a set with a list"),
        ("qubits == '100'", "compares a number with a string"),
        ("free > 0 or state == 3", "`state == 3` compares a string with a number"),
        ("qubits in ['100', '127']", "compares a number with a string"),
        ("state is 'online'", "`is` compares with `None` only; write `==`"),
        ("queue is not 3", "`is` compares with `None` only"),
        ("\udcff < 1", "it has characters that are no text"),
        ("name == 'ibm_fez' or 'ibm_torino'", "`'ibm_torino'` is 'ibm_torino', neither true nor"),
        ("gates[0] == 'x'", "cannot be used"),
        ("f'{name}' == 'x'", "cannot be used"),
        ("(q := 5) > 3", "cannot be used"),
        ("b'x' == 5", "cannot be used"),
        ("1j == qubits", "cannot be used"),
        ("len('a' * 99999) > 5", "only numbers can be added or multiplied"),
        ("[[1] * 9] * 9 == []", "only numbers"),
        ("(" * 240 + "1" + ")" * 240, "not an expression|neither true nor false"),
        ("not " * 120 + "True", "too many parts"),
        ("-" * 490 + "1 > 0", "too many parts|not an expression"),
    ],
)
def test_what_is_no_expression_over_the_fields_is_refused(text, message):
    with pytest.raises(RequestError, match=message) as caught:
        Expression(text)
    assert len(str(caught.value)) < 700


def test_no_expression_takes_long():
    begun = time.process_time()
    never = "state == 'x' and free < 0 and waiting < 0 and calibration_age < 0 and queue < 0"
    for text in (
        "9" * 200 + "*" + "9" * 200 + "> 1",
        "len([" + "1," * 90 + "]) > 5",
        " and ".join([*["queue > 2"] * 30, never]),
        " and ".join(f"max(queue, free, waiting, calibration_age) > {n}" for n in range(9)),
    ):
        Expression(text).failures(FEZ)
        Expression(text).may_ever_hold(FEZ)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "1e300"])
def test_numbers_may_be_of_any_size(number):
    expression = Expression(f"queue < {number} or queue > 5")
    assert expression.failures(FEZ) == []
    assert expression.may_ever_hold(FEZ)


def test_whether_an_expression_can_ever_hold_depends_on_what_does_not_change():
    assert Expression("queue < 5 and qubits > 100").may_ever_hold(FEZ)
    assert not Expression("queue < 5 and qubits > 200").may_ever_hold(FEZ)
    assert not Expression("queue < 0").may_ever_hold(FEZ)
    assert not Expression("queue < 5 and queue > 7").may_ever_hold(FEZ)
    assert Expression("5 < queue < 7").may_ever_hold(FEZ)
    assert not Expression("5 < queue < 6").may_ever_hold(FEZ), "it is a count"
    assert Expression("calibration_age < 0.5").may_ever_hold(FEZ)
    assert not Expression('state == "online" and state == "paused"').may_ever_hold(FEZ)
    assert Expression('state == "calibrating"').may_ever_hold(FEZ)
    assert Expression("queue + waiting + free + calibration_age < 3").may_ever_hold(FEZ)


@pytest.mark.parametrize(
    "text",
    [
        "queue * 10 == 50",
        "queue == qubits",
        "calibration_age * 3 < qubits and calibration_age * 3 > 150",
        'matches(state, "[m]aintenance")',
        "len(state) == 3",
    ],
)
def test_a_condition_is_not_called_impossible_without_a_proof(text):
    assert Expression(text).may_ever_hold(FEZ)


def test_the_page_for_users_explains_every_field():
    text = (Path(__file__).parents[3] / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = text.split("| field | is |")[1].split("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == FIELDS


def test_an_expression_is_compiled_once():
    assert compile_expression("queue < 5") is compile_expression("queue < 5")
    assert compile_expression("queue < 5 and calibration_age < 24").fields == {
        "queue",
        "calibration_age",
    }
