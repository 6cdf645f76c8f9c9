"""Requests for QPUs as users write them."""

from __future__ import annotations

import pickle

import pytest

from qrmi_workflows.config.constraints import (
    QPUConstraint,
    matches,
    parse_fallback,
    parse_qpus,
    plain_names,
)
from qrmi_workflows.errors import RequestError


def names(request, **options):
    """Return the names of each constraint."""
    return [each.names for each in parse_qpus(request, **options)]


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ("ibm_fez", [("ibm_fez",)]),
        ("ibm_*", [("ibm_*",)]),
        ("ibm_fez|ibm_torino", [("ibm_fez", "ibm_torino")]),
        (" ibm_fez | ibm_torino ", [("ibm_fez", "ibm_torino")]),
        ("ibm_fez+FRESNEL", [("ibm_fez",), ("FRESNEL",)]),
        ("ibm_fez,FRESNEL", [("ibm_fez",), ("FRESNEL",)]),
        ("ibm_fez|ibm_torino+FRESNEL", [("ibm_fez", "ibm_torino"), ("FRESNEL",)]),
        ("ibm_*+ibm_*", [("ibm_*",), ("ibm_*",)]),
        ("a|a", [("a",)]),
        ("emulated:fez", [("emulated:fez",)]),
        ("emulated:fez:noisy|ibm_fez", [("emulated:fez:noisy", "ibm_fez")]),
        (["ibm_fez", "FRESNEL"], [("ibm_fez",), ("FRESNEL",)]),
        (None, [()]),
    ],
)
def test_a_request_is_one_constraint_for_each_qpu_of_the_job(request_, found):
    assert names(request_) == found


@pytest.mark.parametrize("wrong", [3, True, b"ibm_fez", {"ibm_fez": 1}, {"ibm_fez"}, ["a", 3]])
def test_what_is_neither_text_nor_a_list_of_texts_is_refused(wrong):
    for parse in (parse_qpus, parse_fallback):
        with pytest.raises(RequestError, match=r"must be a name, .*Put it in quotes"):
            parse(wrong)


def test_a_list_may_mean_alternatives():
    assert names(["ibm_fez", "ibm_t*|FRESNEL"], several="any") == [("ibm_fez", "ibm_t*", "FRESNEL")]
    assert names(["a+b"], several="any") == [("a",), ("b",)]
    with pytest.raises(RequestError, match=r"list of alternatives cannot have `\+`"):
        names(["a", "b+c"], several="any")


def test_conditions_hold_for_each_qpu_of_the_request():
    found = parse_qpus("a+b", min_qubits=100, type="ibm-*", where="queue < 5")

    expected = {"min_qubits": 100, "type": "ibm-*", "where": "queue < 5"}
    assert found == tuple(QPUConstraint(names=(name,), **expected) for name in "ab")
    assert str(found[0]) == "a with min_qubits=100, type='ibm-*', where='queue < 5'"
    assert str(QPUConstraint(min_qubits=5)) == "min_qubits=5"


def test_only_a_request_without_patterns_alternatives_and_conditions_leaves_nothing_to_choose():
    assert plain_names(parse_qpus("a+emulated:fez:noisy")) == ["a", "emulated:fez:noisy"]
    assert plain_names(parse_qpus("a+b|c")) is None
    assert plain_names(parse_qpus("a*")) is None
    assert plain_names(parse_qpus("a", min_qubits=1)) is None
    assert plain_names(parse_qpus(None)) is None


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("", "a name is missing"),
        ("a++b", "a name is missing"),
        ("a|", "a name is missing"),
        ([], "no QPU named"),
        ("a b", "'a b' is not a QPU's name"),
        ("a;rm", "'a;rm' is not a QPU's name"),
        ("emulated:", "'emulated:' is not emulated:MODEL"),
        ("emulated:*", r"'emulated:\*' is not emulated:MODEL"),
        ("emulated:fez?", "is not emulated:MODEL"),
        ("emulated:fez:loud", "must be emulated:MODEL, or emulated:MODEL:noisy"),
        ("a+a", "'a' named twice"),
        ("x" * 3000, "is not a QPU's name"),
        ([5], "5: must be a name"),
    ],
)
def test_what_is_no_request_is_refused_with_what_is_allowed(request_, message):
    with pytest.raises(RequestError, match=message) as caught:
        parse_qpus(request_)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"min_qubits": 0}, "min_qubits=0: must be a positive integer"),
        ({"min_qubits": True}, "min_qubits=True: must be a positive integer"),
        ({"min_qubits": "100"}, "min_qubits='100': must be a positive integer"),
        ({"type": ""}, "type='': must be a resource type"),
        ({"type": "a b"}, "type='a b': must be a resource type"),
        ({"where": " "}, "where=' ': must be an expression"),
        ({"where": "q" * 5000}, "at most 500 characters"),
    ],
)
def test_a_condition_that_is_not_valid_is_refused(condition, message):
    with pytest.raises(RequestError, match=message):
        parse_qpus("a", **condition)


def test_a_pattern_matches_as_in_the_shell_and_a_name_only_itself():
    assert matches("ibm_fez", ["ibm_*"])
    assert matches("ibm_fez", ["FRESNEL", "ibm_fez"])
    assert not matches("IBM_fez", ["ibm_*"])
    assert not matches("emulated:fez", ["*fezz"])


def test_fallbacks_are_names_in_order():
    assert parse_fallback(None) == ()
    assert parse_fallback("b,emulated:fez:noisy") == ("b", "emulated:fez:noisy")
    assert parse_fallback("b|c") == ("b", "c")
    assert parse_fallback(["b", "c"]) == ("b", "c")


@pytest.mark.parametrize("fallback", ["ibm_*", "a+b", "", "a,a", [], ["a", 5]])
def test_a_fallback_that_is_not_one_qpu_is_refused(fallback):
    with pytest.raises(RequestError):
        parse_fallback(fallback)


def test_a_constraint_survives_pickling():
    constraint = QPUConstraint(names=("a",), where="queue < 5")
    assert pickle.loads(pickle.dumps(constraint)) == constraint


def test_conditions_do_not_apply_to_an_emulated_qpu():
    (found,) = parse_qpus("emulated:fez", min_qubits=100, where="queue < 5")
    assert found.name == "emulated:fez"
    assert plain_names(parse_qpus("ibm_fez", min_qubits=100)) is None
