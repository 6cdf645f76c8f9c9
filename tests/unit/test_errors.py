"""The exception tree."""

import pickle

import pytest

from qrmi_workflows import errors

EXAMPLES = [
    errors.QPUError("no"),
    errors.ConfigError("no"),
    errors.UnknownQPUError("ibm_fex", ["ibm_fez", "FRESNEL"], "in a.json", "Look."),
    errors.RequestError("no"),
    errors.PayloadError("no"),
    errors.ResultError("no"),
    errors.LeaseError("no", "ibm_fez", True),
    errors.ResourceError("no", "ibm_fez", "task_start", 503, True),
    errors.AuthenticationError("no", "ibm_fez", "task_start", 401),
    errors.DeadlineError("no", "ibm_fez", "status", retryable=True),
    errors.SessionEndedError("no", "ibm_fez", "task_start", 400, True, True),
    errors.TaskError("no", "ibm_fez", "t1"),
    errors.TaskFailedError("no", "ibm_fez", "t1"),
    errors.TaskCancelledError("no", "ibm_fez", "t1"),
    errors.TaskUnknownError("no", "ibm_fez", "t1"),
    errors.AmbiguousTaskError("no", "ibm_fez"),
    errors.JournalError("no"),
    errors.SchedulerError("no", ("sbatch", "x"), 1, "denied", True),
    errors.SandboxError("no"),
    errors.EmulatorError("no"),
]


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
