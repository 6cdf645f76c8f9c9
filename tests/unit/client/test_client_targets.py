"""The cache of targets."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qrmi_workflows.client.targets import cached_target, fetch_target
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import ResourceError

TEXT = json.dumps({"configuration": {}, "properties": {"last_update_date": "2026-01-01T00:00:00Z"}})
QPU = JobQPU(
    name="ibm_fez",
    type="ibm-quantum-system",
    environment={"QRMI_IBM_QS_ENDPOINT": "https://a.example", "QRMI_IBM_QS_IAM_APIKEY": "secret"},
    token=None,
)


class Vendor:
    """A QPU that counts how often it is asked for its target."""

    def __init__(self, text: str = TEXT) -> None:
        self.text = text
        self.requests = 0

    def target(self) -> SimpleNamespace:
        self.requests += 1
        return SimpleNamespace(value=self.text)


@pytest.fixture
def environ(tmp_path):
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_a_target_is_fetched_once(environ):
    vendor = Vendor()
    assert cached_target(QPU, environ=environ) is None

    first = fetch_target(QPU, resource=vendor, environ=environ)
    again = fetch_target(QPU, resource=vendor, environ=environ)

    assert vendor.requests == 1
    assert (first.text, first.calibrated) == (TEXT, "2026-01-01T00:00:00Z")
    assert again == first == cached_target(QPU, environ=environ)


def test_a_refresh_asks_the_vendor_again(environ):
    vendor = Vendor()
    fetch_target(QPU, resource=vendor, environ=environ)

    fetch_target(QPU, resource=vendor, refresh=True, environ=environ)

    assert vendor.requests == 2


@pytest.mark.parametrize("hours", [7, -7])
def test_a_target_that_is_too_old_or_from_the_future_is_not_used(environ, tmp_path, hours):
    vendor = Vendor()
    fetch_target(QPU, resource=vendor, environ=environ)
    (file,) = tmp_path.rglob("*.json")
    then = time.time() - hours * 3600
    os.utime(file, (then, then))

    assert cached_target(QPU, environ=environ) is None
    assert cached_target(QPU, max_age_hours=8, environ=environ) is not None


def test_the_same_name_at_another_endpoint_is_another_qpu(environ):
    fetch_target(QPU, resource=Vendor(), environ=environ)
    other = replace(QPU, environment={"QRMI_IBM_QS_ENDPOINT": "https://b.example"})

    assert cached_target(other, environ=environ) is None


def test_an_invalid_target_is_neither_returned_nor_cached(environ, tmp_path):
    with pytest.raises(ResourceError, match="sent no valid target") as caught:
        fetch_target(QPU, resource=Vendor("{}"), environ=environ)

    assert caught.value.retryable
    assert list(tmp_path.rglob("*.json")) == []


def test_a_cache_that_cannot_be_written_does_not_fail_the_request(environ, tmp_path):
    (tmp_path / "qrmi-workflows").write_text("a file in place of the folder")

    assert fetch_target(QPU, resource=Vendor(), environ=environ).text == TEXT
