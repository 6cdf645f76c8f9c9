"""Mistakes of Parsl users: each gets a clear message and affects nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import parsl
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.executors.errors import InvalidResourceSpecification
from parsl.serialize.errors import DeserializationError
from parsl_runs import Site, bell, executor, processes_with
from waiting import wait_until

from parsl_ext import qpu_app
from qrmi_workflows.errors import RequestError, UnknownQPUError

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]

SUBMIT_SIDE = """
import parsl
from parsl.config import Config
from parsl_runs import bell, executor
from test_parsl_misuse import sample
with parsl.load(Config(executors=[executor(qpu="ibm_slow")])):
    calls = [sample(bell(shots)) for shots in range(1, 9)]
    print([call.result() for call in calls])
"""


@qpu_app
def sample(payload, lease):
    return lease.run(payload).task_id


@qpu_app(qpu="ibm_slow")
def sample_elsewhere(payload, *, lease):
    return lease.run(payload).task_id


@python_app(executors=["qpu"])
def plain(parsl_resource_specification=None):
    return 1


@qpu_app
def produce(what, *, lease):
    """Return a value that cannot be pickled here, or cannot be unpickled by the program."""
    if what == "lease":
        return lease
    if what == "resource":
        return lease.resource
    if what == "generator":
        return (each for each in (1, 2))

    class Unreadable:
        def __reduce__(self):
            return int, ("not a number",)

    return Unreadable()


@qpu_app
def raise_unreadable():
    import sys
    import types

    module = types.ModuleType("only_in_this_worker")
    sys.modules[module.__name__] = module
    module.Error = type("Error", (Exception,), {"__module__": module.__name__})
    raise module.Error


@pytest.mark.slow
def test_a_call_that_cannot_be_pickled_or_unpickled_fails_alone(parsl_site: Site):
    opened = parsl_site.sessions()["opened"]
    with parsl_site.load(strategy="none"):
        for call, error, message in [
            (raise_unreadable(), DeserializationError, "only_in_this_worker.*plain data"),
            (produce("unreadable"), DeserializationError, "invalid literal.*plain data"),
            (produce("generator"), TypeError, "cannot pickle 'generator'"),
            (produce("lease"), TypeError, "'ibm_quick' .*holds credentials.*return the results"),
            (produce("resource"), TypeError, "'ibm_quick' holds credentials.*return the results"),
            (sample_elsewhere(bell()), UnknownQPUError, "in this block; must be one of: ibm_quick"),
            (plain(parsl_resource_specification={"priority": "x"}),
             InvalidResourceSpecification, "must be a number"),
            (plain(parsl_resource_specification=["qpu"]),
             InvalidResourceSpecification, "must be a dict"),
        ]:  # fmt: skip
            with pytest.raises(error, match=message):
                call.result(timeout=150)
        for arguments in ({"lease": 1}, {"payload": bell(), "lease": None}):
            with pytest.raises(RequestError, match="Leave it out"):
                sample(**arguments)
        with pytest.raises(RequestError, match="Leave it out"):
            sample(bell(), "mine")

        assert sample(bell()).result(timeout=150)

    assert parsl_site.sessions()["opened"] - opened == 1


@pytest.mark.slow
def test_ctrl_c_cancels_running_tasks_and_releases_the_lease(parsl_site: Site):
    argv = [sys.executable, "-c", SUBMIT_SIDE]
    process = subprocess.Popen(
        argv, cwd=parsl_site.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: parsl_site.tasks()["running"] == 4, "the tasks to run", seconds=60)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=90)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Parsl's interchange outlives its parent

    assert stderr.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")
    wait_until(lambda: not (parsl_site.jobs() or processes_with("QPU_STATE")), "all to end")
    tasks = parsl_site.tasks()
    assert tasks["accepted"] == tasks["finished"]


@pytest.mark.slow
def test_the_run_folder_may_have_spaces_and_braces_in_its_name(parsl_site: Site):
    folder = str(parsl_site.folder / "a user's {run} #1")
    with parsl.load(Config(executors=[executor()], run_dir=folder)):
        assert sample(bell()).result(timeout=150)
    wait_until(lambda: not parsl_site.jobs(), "the block to end")
