"""Entries of qrmi_config.json that stand for all QPUs of an account (`is_dynamic`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import read_resources

from qrmi_workflows import open_lease
from qrmi_workflows.client.discovery import list_discovered
from qrmi_workflows.config.qpus import load_dynamic
from qrmi_workflows.emulator import Emulator
from qrmi_workflows.errors import ConfigError, ResourceError, UnknownQPUError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.reap import reap


@pytest.fixture
def config(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with an account of each of IBM's APIs, one of Pasqal's, and no QPU."""
    entries = read_resources(emulator)
    accounts = {"compute": "ibm_fez", "system": "ibm_system", "clouds": "EMU_FREE"}
    dynamic = [
        {**entries[qpu], "name": account, "is_dynamic": True} for account, qpu in accounts.items()
    ]
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps({"resources": dynamic}))
    monkeypatch.setenv("QPU_CONFIG", str(path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return path


def listed(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "qrmi_workflows", "list", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_they_are_listed_as_the_qpus_that_they_stand_for(config):
    """QRMI cannot list those of Pasqal's accounts; the row says so."""
    rows = {row["name"]: row for row in listed()}

    assert {"ibm_fez", "ibm_system", "ibm_quick", "clouds"} <= rows.keys()
    assert not {"compute", "system"} & rows.keys()
    assert rows["ibm_fez"]["state"] == rows["ibm_system"]["state"] == "online"
    assert rows["ibm_system"]["type"] == "ibm-quantum-system"
    assert "QRMI cannot list the QPUs of type 'pasqal-cloud'" in rows["clouds"]["state"]


@pytest.mark.parametrize("qpu", ["ibm_fez", "ibm_system"])
def test_a_qpu_of_an_account_runs_tasks_under_its_own_name(config, qpu):
    """No credential enters this process's environment, from where jobs would inherit it."""
    circuit = (
        'OPENQASM 3.0; include "stdgates.inc"; bit[1] meas; sx $0; sx $0; meas[0] = measure $0;'
    )
    payload = {"program_id": "sampler", "parameters": {"pubs": [[circuit, None, 50]], "version": 2}}

    with open_lease(qpu) as lease:
        counts = lease.run(payload).counts("meas")

    assert counts == {"1": 50}
    shown = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert f"{qpu}_QRMI" not in shown


def test_listing_them_leaves_no_credential_in_this_process(config):
    """From its environment, the processes that it starts would inherit them."""
    account = load_dynamic(config)["compute"]

    assert "ibm_fez" in [each.name for each in list_discovered(account)]

    shown = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "_QRMI_" not in shown


def test_an_orphaned_lease_of_such_a_qpu_is_released(config):
    code = "import os; from qrmi_workflows import open_lease; open_lease('ibm_quick'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=False)

    [reaped] = reap()

    assert (reaped.qpu, reaped.released) == ("ibm_quick", True)


def test_other_names_are_refused(config):
    with pytest.raises(UnknownQPUError, match="unknown QPU 'ibm_none'"):
        find_qpu("ibm_none", environ=os.environ)
    with pytest.raises(ConfigError, match="'compute' stands for all QPUs of an account"):
        find_qpu("compute", environ=os.environ)
    with pytest.raises(ConfigError, match=r"no QPU named, and .* defines 0: none\. Name one"):
        find_qpu(None, environ=os.environ)


def test_a_silent_account_is_not_taken_for_one_without_the_qpu(config):
    entries = json.loads(config.read_text())["resources"]
    entries[0]["environment"]["QRMI_IBM_QCS_ENDPOINT"] = "http://127.0.0.1:9"
    config.write_text(json.dumps({"resources": entries}))

    assert find_qpu("EMU_FREE", environ=os.environ).type == "pasqal-cloud"
    with pytest.raises(ResourceError):
        find_qpu("ibm_fez", environ=os.environ)
