"""The exception tree."""

from __future__ import annotations

import pickle

import pytest
from error_examples import EXAMPLES

from qrmi_workflows import errors


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_with_its_attributes(error):
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_class_has_an_example_and_is_drawn_in_the_tree():
    classes = {getattr(errors, name) for name in errors.__all__}

    assert {type(error) for error in EXAMPLES} == classes
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")


def test_the_message_about_an_unknown_qpu_suggests_a_similar_name():
    error = errors.UnknownQPUError("ibm_fex", ["ibm_fez", "FRESNEL"], "in a.json", "Look.")

    assert str(error) == (
        "unknown QPU 'ibm_fex' in a.json; must be one of: FRESNEL, ibm_fez. Did you mean 'ibm_fez'?"
    )


def test_the_message_about_an_unknown_qpu_without_a_similar_name_says_what_to_do():
    error = errors.UnknownQPUError("titan", [], "in a.json", "Look.")

    assert str(error) == "unknown QPU 'titan' in a.json; must be one of: none. Look."
