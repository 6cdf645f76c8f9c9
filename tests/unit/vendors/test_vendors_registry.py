"""The registry of vendors."""

from __future__ import annotations

import pytest

from qrmi_workflows.errors import ConfigError, PayloadError
from qrmi_workflows.vendors.registry import find_frontend, vendor_of_type


def test_a_qpu_has_the_front_ends_of_its_vendor():
    assert find_frontend("sampler", qpu="a", resource_type="ibm-quantum-system")
    with pytest.raises(
        PayloadError,
        match=r"has no sampler; must be one of: pulser_backend, pulser_connection. .* type: ibm-",
    ):
        find_frontend("sampler", qpu="F", resource_type="pasqal-cloud")


def test_a_front_end_that_no_vendor_offers_is_refused():
    with pytest.raises(PayloadError, match=r"pulser_connection\. Use one of these\.$"):
        find_frontend("annealer", qpu="F", resource_type="pasqal-cloud")


def test_an_unknown_resource_type_is_refused_with_the_known_types():
    with pytest.raises(ConfigError, match=r"unknown resource type 'other'; .* one of: ibm-quantum"):
        find_frontend("sampler", qpu="o", resource_type="other")


def test_a_vendor_is_found_by_resource_type():
    assert vendor_of_type("qiskit-runtime-service").name == "ibm"
