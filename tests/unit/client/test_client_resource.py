"""Our resource over QRMI's client, where no vendor is needed."""

from __future__ import annotations

import pickle

import pytest

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import ConfigError


def test_a_resource_refuses_to_be_pickled_because_it_holds_credentials():
    resource = QRMIResource("ibm_a", "ibm-quantum-system", {"QRMI_IBM_QS_IAM_APIKEY": "secret"})

    with pytest.raises(TypeError, match="'ibm_a' holds credentials"):
        pickle.dumps(resource)
    assert "secret" not in repr(resource)


@pytest.mark.parametrize("type_", ["iqm-server", "alice-bob-felis"])
def test_a_type_that_only_qrmi_knows_is_accepted(type_):
    assert QRMIResource("q", type_, {}).type == type_


def test_a_type_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"unknown type 'abacus'; must be one of: .*ibm-"):
        QRMIResource("q", "abacus", {})


def test_a_handle_gets_what_its_client_requires_besides_the_site_s_file():
    """QRMI's handle to Pasqal Local refuses to be made without the job's id and its user."""
    resource = QRMIResource("fresnel", "pasqal-local", {"QRMI_WARDEN_URL": "http://127.0.0.1:1"})

    assert str(resource.resource_type()).endswith("PasqalLocal")
