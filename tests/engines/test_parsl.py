"""Parsl apps on a real Slurm, in blocks that hold the QPU under one lease."""

from __future__ import annotations

import os
import re

import pytest
from parsl import python_app
from parsl_runs import Site, bell

from parsl_ext import QPUExecutor, QPUSlurmProvider, qpu_app
from qrmi_workflows.errors import ConfigError, PayloadError, RequestError, UnknownQPUError

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]


@python_app(executors=["qpu"])
def show_environment() -> dict[str, str]:
    """Return what the environment of a block shows to an app that asks for no lease."""
    import os

    return {k: v for k, v in os.environ.items() if k.startswith(("SLURM", "QRMI", "ibm_quick"))}


@python_app(executors=["qpu"])
def sample_in_plain_app(payload):
    from parsl_ext import block_lease

    return block_lease().run(payload).task_id


@qpu_app
def sample(payload, *, lease):
    import os

    result = lease.run(payload)
    return {"task": result.task_id, "qpu": result.qpu, "job": os.environ["SLURM_JOB_ID"]}


@qpu_app
def add(first, second):
    return first + second


def test_apps_run_in_a_block_that_holds_the_qpu_and_one_lease(parsl_site: Site):
    before, tasks = parsl_site.sessions(), parsl_site.tasks()
    with parsl_site.load(strategy="none"):  # else the block ends when it is idle for a second
        environ = show_environment().result()
        (job,) = parsl_site.jobs()
        assert re.fullmatch(r"\S+\|RUNNING\|gres[:/]qpu:ibm_quick:1", job)
        results = [sample(bell(shots)) for shots in range(1, 9)]
        jobs = {future.result()["job"] for future in results}
        assert sample_in_plain_app(bell(20)).result()
        assert add(1, add(2, 3)).result() == 6
        assert parsl_site.sessions()["opened"] - before["opened"] == 1

    assert jobs == {environ["SLURM_JOB_ID"]}
    assert environ["QRMI_JOB_QPU_RESOURCES"] == "ibm_quick"
    assert environ["ibm_quick_QRMI_JOB_ACQUISITION_TOKEN"]
    shown = parsl_site.slurm("scontrol", "show", "job", *jobs).split()
    small = {"NumNodes=1", "NumCPUs=1", "OverSubscribe=OK", "Requeue=0"}
    assert small | {"Licenses=qpu_ibm_quick:1"} <= set(shown)
    assert parsl_site.tasks()["accepted"] - tasks["accepted"] == 9
    assert parsl_site.sessions()["open"] == 0
    assert "SLURM_JOB_ID" not in os.environ


def test_two_equal_calls_are_two_tasks(parsl_site: Site):
    before = parsl_site.tasks()["accepted"]
    with parsl_site.load():
        first, second = sample(bell()), sample(bell())

        assert first.result()["task"] != second.result()["task"]

    assert parsl_site.tasks()["accepted"] - before == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"qpu": "ibm_quik"}, UnknownQPUError, "Did you mean 'ibm_quick'"),
        ({"qpu": "ibm_quick", "count": 0}, RequestError, "must be a positive integer"),
        ({"qpu": "ibm_quick", "site": "/nowhere.toml"}, ConfigError, "Name a file"),
        (
            {"qpu": "ibm_quick", "scheduler_options": "#SBATCH --gres=gpu:1"},
            RequestError,
            "Remove --gres",
        ),
    ],
)
def test_a_provider_refuses_a_wrong_request_at_once(parsl_site: Site, arguments, error, message):
    with pytest.raises(error, match=message):
        QPUSlurmProvider(**arguments)

    assert parsl_site.jobs() == []


@pytest.mark.parametrize("wrong", [{"count": 2}, {"gres": "qpu:ibm_gone"}])
def test_an_executor_refuses_to_start_if_slurm_does_not_offer_the_qpu(parsl_site: Site, wrong):
    policy = parsl_site.folder / "site.toml"
    policy.write_text(f'[qpus.ibm_quick]\ngres = "{wrong.get("gres", "qpu:ibm_quick")}"\n')
    provider = QPUSlurmProvider(qpu="ibm_quick", count=wrong.get("count", 1), site=str(policy))

    with pytest.raises((UnknownQPUError, RequestError), match="no node"):
        QPUExecutor(provider=provider).start()

    assert parsl_site.jobs() == []


def test_a_wrong_payload_is_refused_in_the_block_and_not_sent_to_the_vendor(parsl_site: Site):
    before = parsl_site.tasks()["accepted"]
    with parsl_site.load(), pytest.raises(PayloadError, match="Correct the payload"):
        sample({"sequence": "{}"}).result()

    assert parsl_site.tasks()["accepted"] == before
