"""Parsl blocks whose QPU is chosen, on a real Slurm with several emulated ones."""

from __future__ import annotations

import json

import pytest
from parsl_runs import Site, bell

from parsl_ext import qpu_app
from qrmi_workflows.lease.record import records_folder

pytestmark = [pytest.mark.slurm, pytest.mark.engines]


def sample_or_fail(payload, fails, *, lease):
    task = lease.run(payload).task_id
    if fails:
        raise ZeroDivisionError
    return lease.qpu, task


@pytest.mark.slow
def test_a_rerun_goes_to_the_qpu_that_was_chosen_before_and_pays_once(
    parsl_site: Site, monkeypatch: pytest.MonkeyPatch
):
    """The other QPU is the less busy one then: the last choice counts as a task."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(parsl_site.folder / "cache"))
    wanted = {"qpu": "ibm_quick|ibm_other", "qpu_min_qubits": 100}
    app = qpu_app(sample_or_fail)
    before = parsl_site.tasks()["accepted"]

    with parsl_site.load(**wanted), pytest.raises(ZeroDivisionError):
        app(bell(), True, qpu_step="bell").result()
    with parsl_site.load(**wanted):
        qpu, _ = app(bell(), False, qpu_step="bell").result()
        others = {app(bell(shots), False).result()[0] for shots in (1, 2)}

    assert qpu in ("ibm_quick", "ibm_other")
    assert others == {qpu}, "all calls of a run are on the chosen QPU"
    assert parsl_site.tasks()["accepted"] == before + 3
    lines = [line for file in records_folder().glob("*.jsonl") for line in file.open()]
    chosen = [json.loads(line)["chosen"] for line in lines]
    assert len(chosen) == 2
    assert all(each.startswith("ibm_quick|ibm_other with min_qubits=100: ") for each in chosen)
    assert "of an earlier attempt" in chosen[1]
