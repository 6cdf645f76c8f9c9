"""What identifies a call: its QPU for Parsl's memoizer, and its name for the journal."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import python_app
from parsl.app.errors import AppTimeout, BashExitFailure
from parsl.config import Config
from parsl.data_provider.files import File
from parsl.monitoring import MonitoringHub
from parsl_runs import Site, bell
from waiting import wait_until

from parsl_ext import (
    QPUExecutor,
    QPUSlurmProvider,
    qpu_app,
    qpu_bash_app,
    qpu_config,
    register_memo_types,
    run_payload,
)
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.results import QuantumResult

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]


def sample_on(payload, *, lease):
    return lease.qpu, lease.run(payload).task_id


def plain_on(payload):
    from parsl_ext import block_lease

    return block_lease().qpu, block_lease().run(payload).task_id


def both_qpus(site: Site, **options: Any) -> Config:
    return Config(
        executors=[
            QPUExecutor(
                label=name,
                provider=QPUSlurmProvider(qpu=name, walltime="00:05:00", status_polling_interval=1),
            )
            for name in ("ibm_quick", "ibm_other")
        ],
        run_dir=str(site.folder / "runs"),
        **options,
    )


@pytest.mark.slow
def test_a_memoised_call_on_another_qpu_is_another_call(parsl_site: Site):
    register_memo_types()
    (parsl_site.folder / "bell.json").write_text(json.dumps(bell()))
    names = ["ibm_quick", "ibm_other"]
    with parsl.load(both_qpus(parsl_site)):
        for name in names:
            path = parsl_site.folder / "bell.json"
            assert run_payload(path, executors=name, cache=True).result().qpu == name
            sample = qpu_app(executors=name, cache=True, qpu=name)(sample_on)
            qpu, task = sample(bell(1)).result()
            assert qpu == name
            assert sample(bell(1)).result() == (qpu, task), "an equal call is not run again"
        either = qpu_app(executors=names, cache=True)(sample_on)
        first = either(bell(2)).result()
        assert [either(bell(2)).result() for _ in range(5)] == [first] * 5
    wait_until(lambda: not parsl_site.jobs(), "the blocks to end")


@pytest.mark.slow
def test_a_checkpointed_program_on_another_qpu_runs_again(parsl_site: Site):
    def run(name: str) -> list[tuple[str, str]]:
        plain = python_app(executors=["qpu"], cache=True)(plain_on)
        sample = qpu_app(cache=True)(sample_on)
        options = {"run_dir": str(parsl_site.folder / "runs"), "init_blocks": 0}
        with parsl.load(qpu_config(name, local=True, checkpoint=True, **options)):
            result = run_payload(bell(), cache=True).result()
            found = [sample(bell(1)).result(), plain(bell(2)).result()]
        return [*found, (result.qpu, result.task_id)]

    quick, other = run("ibm_quick"), run("ibm_other")

    assert {qpu for qpu, _ in quick} == {"ibm_quick"}
    assert {qpu for qpu, _ in other} == {"ibm_other"}
    assert run("ibm_quick") == quick
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the releases")


@qpu_app
def sample(payload, *, lease):
    return lease.run(payload).task_id


@qpu_app
def sample_or_fail(payload, fail, *, lease):
    task = lease.run(payload).task_id
    if fail:
        raise ZeroDivisionError
    return task


@python_app(executors=["qpu"])
def plain():
    return 1


def local(site: Site, qpu: str = "ibm_quick", **options: Any) -> Any:
    return qpu_config(qpu, local=True, run_dir=str(site.folder / "runs"), **options)


@pytest.mark.slow
def test_a_name_finds_the_tasks_of_a_call_only_if_that_has_failed(
    parsl_site: Site, caplog: pytest.LogCaptureFixture
):
    with parsl.load(local(parsl_site)):
        calls = [sample(bell(), qpu_step="bell") for _ in range(2)]
        tasks = [call.result() for call in calls]
        tasks.append(sample(bell(), qpu_step="bell").result())
        other = sample_or_fail(bell(), False, qpu_step="bell")
        tasks.append(other.result())
        assert "reuses" not in caplog.text
        failed = [sample_or_fail(bell(), True, qpu_step="fails") for _ in range(2)]
        for call in failed:
            with pytest.raises(ZeroDivisionError):
                call.result()
        left = {record.step.endswith(" #2"): record.task_id for record in Journal().records()}
        first, second = left[False], left[True]
        tasks += [first, second]
        again = sample_or_fail(bell(), False, qpu_step="fails").result()
        assert again == first, "a call that is repeated in the same run finds its task as well"
        assert "reuses 1 task(s) of an earlier attempt that did not succeed" in caplog.text
        with pytest.raises(RequestError, match="non-empty string"):
            sample(bell(), qpu_step="")
    with parsl.load(local(parsl_site)):
        tasks.append(sample(bell(), qpu_step="bell").result())
        tasks.append(sample_or_fail(bell(), False, qpu_step="fails").result())
        assert sample_or_fail(bell(), False, qpu_step="fails").result() == second

    assert len(set(tasks)) == len(tasks) == 8
    assert not list(Journal().records())


@qpu_app
def endless(payload, *, lease):
    return lease.run(payload).task_id


@qpu_app
def endless_map(payloads, *, lease, walltime=10):
    return [result.task_id for result in lease.map(payloads)]


@qpu_bash_app
def endless_command(inputs=(), outputs=()):
    return f"qpu run {inputs[0]} -o {outputs[0]}"


@pytest.mark.slow
def test_a_call_ends_with_its_walltime_and_its_tasks_are_cancelled(parsl_site: Site):
    path = parsl_site.folder / "bell.json"
    path.write_text(json.dumps(bell()))
    files = {"inputs": [path], "outputs": [File(parsl_site.folder / "none.json")]}
    before = parsl_site.tasks()
    leave = "export QPU_ON_STOP=leave"  # which is for lost blocks
    with parsl_site.load(qpu="ibm_endless", worker_init=leave):
        started = time.monotonic()
        calls = [
            endless(bell(), walltime=10),
            endless_map([bell(1), bell(2)]),
            endless_command(walltime=10, **files),
        ]
        for call in calls:
            with pytest.raises(AppTimeout):
                call.result()
        assert time.monotonic() - started < 100, "far less than the tasks would take"
        wait_until(
            lambda: parsl_site.tasks()["accepted"] == parsl_site.tasks()["finished"],
            "the tasks to be cancelled",
        )
    assert 0 < parsl_site.tasks()["accepted"] - before["accepted"] <= 4


@qpu_bash_app
def run_command(payload, outputs=(), fail=False, stderr=None):
    return f"qpu run {payload} -o {outputs[0]} && {'false' if fail else 'true'}"


def test_a_bash_app_runs_commands_on_the_blocks_qpu(parsl_site: Site):
    path = parsl_site.folder / "bell.json"
    path.write_text(json.dumps(bell()))
    output = File(parsl_site.folder / "result.json")
    before = parsl_site.tasks()["accepted"]
    with pytest.raises(RequestError, match="adopts the block's lease by itself"):
        qpu_bash_app(sample_on)
    with parsl_site.load(lanes=1):
        call = run_command(str(path), outputs=[output], fail=True, qpu_step="bash")
        with pytest.raises(BashExitFailure):
            call.result()
        Path(output.filepath).unlink()
        call = run_command(str(path), outputs=[output], qpu_step="bash")
        assert call.result() == 0
        assert QuantumResult.load(call.outputs[0].result()).qpu == "ibm_quick"
        many = [
            run_command(str(path), outputs=[File(parsl_site.folder / f"{n}.json")])
            for n in range(4)
        ]
        assert [each.result() for each in many] == [0] * 4
    assert parsl_site.tasks()["accepted"] - before == 5


@pytest.mark.slow
def test_an_idle_block_releases_the_qpu_although_others_may_be_idle_longer(parsl_site: Site):
    before = parsl_site.sessions()
    provider = QPUSlurmProvider(qpu="ibm_quick", walltime="00:05:00", status_polling_interval=1)
    config = Config(
        executors=[QPUExecutor(provider=provider, max_idletime=1)],
        run_dir=str(parsl_site.folder / "runs"),
        strategy_period=0.3,
    )
    with parsl.load(config):
        for number in (1, 2):
            assert sample(bell()).result()
            wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")
            assert parsl_site.sessions()["opened"] - before["opened"] == number


@pytest.mark.slow
def test_monitoring_records_calls_blocks_and_resources(parsl_site: Site):
    runs = parsl_site.folder / "runs"
    hub = MonitoringHub(resource_monitoring_interval=1)
    with parsl.load(
        qpu_config("ibm_quick", monitoring=hub, run_dir=str(runs), walltime="00:05:00")
    ):
        assert sample(bell()).result()
        assert plain().result() == 1
    wait_until(lambda: not parsl_site.jobs(), "the block to end")

    with closing(sqlite3.connect(runs / "monitoring.db")) as database:
        resources = database.execute(
            "SELECT task_id, max(psutil_process_memory_resident), max(psutil_process_time_user),"
            " count(*) FROM resource GROUP BY task_id ORDER BY task_id"
        ).fetchall()
        hosts = database.execute("SELECT hostname, block_id FROM try").fetchall()
        (job,) = database.execute("SELECT DISTINCT job_id FROM block").fetchall()
    assert [task for task, *_ in resources] == [0, 1]
    assert all(memory > 1e6 and seconds > 0 and rows >= 2 for _, memory, seconds, rows in resources)
    assert {block for _, block in hosts} == {"0"}
    assert str(job[0]).isdecimal()


@pytest.mark.slow
def test_a_block_holds_several_qpus(parsl_site: Site):
    names = ["ibm_quick", "ibm_other"]
    before = parsl_site.sessions()["opened"]
    with parsl_site.load(qpu=names):
        calls = [qpu_app(qpu=name)(sample_on)(bell()) for name in names for _ in range(3)]
        used = [call.result()[0] for call in calls]
        assert plain().result() == 1
        with pytest.raises(ConfigError, match="this block holds 2: ibm_quick, ibm_other"):
            sample(bell()).result()
    assert used == ["ibm_quick"] * 3 + ["ibm_other"] * 3
    assert parsl_site.sessions()["opened"] - before == 2
    assert parsl_site.sessions()["open"] == 0
