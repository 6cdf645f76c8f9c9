"""Mixed blocks, payloads without an app, checkpoints, and ready-made configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import python_app
from parsl.data_provider.files import File
from parsl.executors.errors import InvalidResourceSpecification
from parsl_runs import Site, bell, most_at_once
from qiskit import QuantumCircuit
from waiting import wait_until

from parsl_ext import qpu_app, qpu_config, run_payload
from qrmi_workflows.errors import PayloadError, RequestError, UnknownQPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]


@python_app(executors=["qpu"])
def span(seconds, gate=None, parsl_resource_specification=None):
    """Return when the call started and finished; it waits first until its gate, a file, exists."""
    import os
    import time
    from pathlib import Path

    before = time.monotonic()
    if gate is not None:
        Path(f"{gate}.{os.getpid()}").touch()
        while not Path(gate).exists():
            time.sleep(0.02)
    time.sleep(seconds)
    return before, time.monotonic()


@qpu_app
def sample_many(shots, *, lease):
    from parsl_runs import bell

    return [result.task_id for result in lease.map([bell(each) for each in shots])]


@qpu_app(cache=True)
def sample_circuit(circuit, *, lease):
    return lease.sampler().run([circuit]).result()[0].data.meas.get_counts()


@python_app(executors=["qpu"])
def write_payload(shots, outputs=()):
    import json
    from pathlib import Path

    from parsl_runs import bell

    Path(outputs[0].filepath).write_text(json.dumps(bell(shots)))


@pytest.mark.slow
def test_a_mixed_block_runs_no_more_calls_on_the_qpu_than_it_has_lanes(parsl_site: Site):
    gates = [parsl_site.folder / name for name in ("calls", "low", "free")]

    def wait_for_calls(gate: Path, number: int) -> None:
        found = parsl_site.folder.glob
        wait_until(lambda: len(list(found(f"{gate.name}.*"))) >= number, "calls at the gate")

    with parsl_site.load(lanes=2, max_workers_per_node=6) as kernel:
        outstanding = kernel.executors["qpu"].outstanding
        span(0).result()
        qpu = {"qpu": 1}
        calls = [span(0.2, str(gates[0]), parsl_resource_specification=qpu) for _ in range(12)]
        wait_for_calls(gates[0], 2)
        wait_until(lambda: outstanding() > 6, "calls to be queued")
        span(0).result()
        assert not any(call.done() for call in calls), "a classical call waits for no lane"
        gates[0].touch()
        tasks = sample_many([1, 2, 3, 4])
        assert most_at_once([call.result() for call in calls]) == 2
        assert len(set(tasks.result())) == 4

        later = {"qpu": 1, "priority": 2}
        low = [span(0.1, str(gates[1]), parsl_resource_specification=later) for _ in range(12)]
        wait_for_calls(gates[1], 2)
        urgent = span(0, parsl_resource_specification={"qpu": 1, "priority": 1})
        wait_until(lambda: outstanding() == 13, "all calls to be queued")
        gates[1].touch()
        assert sum(call.result()[0] < urgent.result()[0] for call in low) < 9

        free = [span(0.2, str(gates[2])) for _ in range(6)]
        wait_for_calls(gates[2], 3)
        gates[2].touch()
        assert most_at_once([call.result() for call in free]) > 2

        for wrong, message in [
            ({"gpu": 1}, "unknown key 'gpu': must be one of: priority, qpu"),
            ({"qpu": 2}, "qpu=2: must be 1"),
        ]:
            with pytest.raises(InvalidResourceSpecification, match=message):
                span(0, parsl_resource_specification=wrong).result()


def config(site: Site, **options: Any) -> parsl.Config:
    return qpu_config(
        "ibm_quick",
        run_dir=str(site.folder / "runs"),
        walltime="00:05:00",
        status_polling_interval=1,
        **options,
    )


def circuit() -> QuantumCircuit:
    made = QuantumCircuit(1)
    made.sx(0)
    made.measure_all()
    return made


@pytest.mark.slow
def test_payloads_run_without_an_app_and_a_rerun_uses_the_checkpoint(parsl_site: Site):
    folder = parsl_site.folder
    (folder / "bell.json").write_text(json.dumps(bell()))
    with parsl.load(config(parsl_site, checkpoint=True)):
        from_file = run_payload(folder / "bell.json", outputs=[folder / "result.json"], cache=True)
        made = write_payload(7, outputs=[File(folder / "made.json")])
        from_future = run_payload(made.outputs[0], shots=9)
        with pytest.raises(PayloadError, match=r"bel\.json: .*No such file"):
            run_payload("bel.json")
        with pytest.raises(RequestError, match="2 output files"):
            run_payload(bell(), outputs=["a", "b"])
        counts = sample_circuit(circuit()).result()
        saved = QuantumResult.load(Path(from_file.outputs[0].result().filepath))
        assert saved == from_file.result()
        sent = Payload.from_content(bell(7)).with_shots(9)
        assert from_future.result().payload_digest == sent.digest
        wait_until(lambda: not list(Journal().records()), "the steps to be archived")
    before = parsl_site.tasks()["accepted"]
    wait_until(lambda: not parsl_site.jobs(), "the block to end")

    with parsl.load(config(parsl_site, checkpoint=True, init_blocks=0)):
        again = run_payload(folder / "bell.json", outputs=[folder / "result.json"], cache=True)
        assert again.result() == saved
        assert sample_circuit(circuit()).result() == counts

    assert parsl_site.tasks()["accepted"] == before
    assert parsl_site.jobs() == []


@qpu_app
def sample_or_fail(payload, fail, *, lease):
    result = lease.run(payload)
    if fail:
        raise ZeroDivisionError
    return result.task_id


@pytest.mark.slow
def test_another_run_finds_the_tasks_of_a_named_step(parsl_site: Site):
    options = {"local": True, "run_dir": str(parsl_site.folder / "runs"), "retries": 0}
    before = parsl_site.tasks()["accepted"]
    with parsl.load(qpu_config("ibm_quick", **options)):
        with pytest.raises(ZeroDivisionError):
            sample_or_fail(bell(), True, qpu_step="energies").result()
        assert parsl_site.jobs() == []
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")

    with parsl.load(qpu_config("ibm_quick", **options)):
        first = sample_or_fail(bell(), False, qpu_step="energies").result()
        assert sample_or_fail(bell(), False).result() != first
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")

    assert parsl_site.tasks()["accepted"] - before == 2
    with pytest.raises(UnknownQPUError, match="ibm_quick"):
        qpu_config("ibm_quik", local=True)
