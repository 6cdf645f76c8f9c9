"""IBM's targets: their calibration date, and their conversion for Qiskit."""

from __future__ import annotations

import pytest
from ibm_targets import snapshot_target

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.ibm import transpiler_target
from qrmi_workflows.vendors.registry import load_vendor


def test_a_target_has_the_date_of_its_calibration():
    assert load_vendor("ibm").calibrated(snapshot_target("fez")) == "2025-02-26T15:16:25-05:00"


@pytest.mark.parametrize("text", ["", "null", "{}", '{"configuration": null, "properties": {}}'])
def test_an_invalid_target_is_refused_before_it_is_cached(text):
    """Caching a target starts with its calibration date."""
    with pytest.raises(ResultError, match="Fetch it again"):
        load_vendor("ibm").calibrated(text)


@pytest.mark.parametrize("target", [{}, "target.json", "[]"])
def test_only_a_targets_text_converts_for_the_transpiler(target):
    """A parsed document, a file's name and another vendor's target are refused, with advice."""
    with pytest.raises(ResultError, match=r"`qpu target NAME` .* as text"):
        transpiler_target(target)
