"""The exception tree."""

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


def test_every_class_has_an_example_here_and_its_place_in_the_drawn_tree():
    classes = {getattr(errors, name) for name in errors.__all__}

    assert {type(error) for error in EXAMPLES} == classes
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")


def test_an_unknown_qpu_is_answered_with_the_near_name():
    error = errors.UnknownQPUError("ibm_fex", ["ibm_fez", "FRESNEL"], "in a.json", "Look.")

    assert str(error) == (
        "unknown QPU 'ibm_fex' in a.json; allowed: FRESNEL, ibm_fez. Did you mean 'ibm_fez'?"
    )
