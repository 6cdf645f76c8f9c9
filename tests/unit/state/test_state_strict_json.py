"""JSON without numbers that only some readers take."""

import json
import math

import pytest

from qrmi_workflows.state.strict_json import restore_numbers, to_strict_json


def refuse(name: str) -> None:
    pytest.fail(f"{name} is not JSON")


def test_numbers_that_are_not_finite_are_strings_and_read_back():
    document = {"a": [1.5, math.inf, (-math.inf, "x")], "b": {"c": math.nan}, "d": None}

    text = to_strict_json(document, indent=1)

    written = json.loads(text, parse_constant=refuse)
    assert written == {"a": [1.5, "Infinity", ["-Infinity", "x"]], "b": {"c": "NaN"}, "d": None}
    read = restore_numbers(written)
    assert read["a"] == [1.5, math.inf, [-math.inf, "x"]]
    assert math.isnan(read["b"]["c"])


def test_what_json_does_not_have_is_refused():
    with pytest.raises(TypeError):
        to_strict_json({"a": math.inf, "b": 1j})
