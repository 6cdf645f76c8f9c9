"""Tasks that were paid for and have no result are in the accounts, with the reason."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from fault_payloads import bell

from qrmi_workflows import open_lease
from qrmi_workflows.cli.usage import usage
from qrmi_workflows.errors import TaskFailedError


def test_a_failed_task_is_named_with_its_reason_and_one_with_a_result_is_not(
    emulator, monkeypatch, tmp_path
):
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    invalid = bell()
    invalid["parameters"]["pubs"][0][0] = (
        "OPENQASM 3.0; bit[1] c; array[int[8], 2] nonsense; c[0] = measure $0;"
    )
    with open_lease("ibm_fez", step="half") as lease:
        fine = lease.run(bell())
        with pytest.raises(TaskFailedError) as failed:
            lease.run(invalid)

    document = json.loads(CliRunner().invoke(usage, ["--json"], catch_exceptions=False).stdout)

    (anomaly,) = [each for each in document["anomalies"] if each["kind"] == "no-result"]
    assert f"task {failed.value.task_id} ran without a result: " in anomaly["what"]
    assert "failed at the vendor" in anomaly["what"]
    assert fine.task_id not in anomaly["what"]
    assert document["total"]["tasks"] == 2
