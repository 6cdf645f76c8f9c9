"""A Parsl program on emulated QPUs: on classical nodes and on a laptop, then on the real QPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import parsl
import pytest
from parsl import python_app
from parsl.executors import ThreadPoolExecutor
from parsl_runs import Site, bell

from parsl_ext import qpu_app, qpu_config, run_payload
from qrmi_workflows import open_lease

pytestmark = pytest.mark.engines

NOWHERE = ("QPU_CONFIG", "QPU_SITE", "XDG_CONFIG_HOME")


@qpu_app(cache=True)
def sample(payload, *, lease):
    return lease.qpu, lease.run(payload).qpu


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give no site: neither a definition, nor a policy, nor a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    here = Path(__file__).parent  # for `sample`, in the workers
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}:{here.parents[1]}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in (*NOWHERE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_apps_run_on_a_laptop_without_any_site(nowhere: Path):
    """In a block of a local provider, and with leases of their own in threads."""
    threads = ThreadPoolExecutor(label="threads", max_threads=2)
    config = qpu_config(
        "emulated:fez", local=True, executors=[threads], run_dir=str(nowhere / "runs")
    )

    @python_app(executors=["threads"])
    def in_a_thread(payload):
        with open_lease("emulated:fez") as lease:
            return lease.run(payload).qpu

    with parsl.load(config):
        in_threads = [in_a_thread(bell(shots)) for shots in (10, 20)]
        assert sample(bell()).result() == ("emulated:fez", "emulated:fez")
        assert [future.result() for future in in_threads] == ["emulated:fez"] * 2


@pytest.mark.slow
@pytest.mark.slurm
def test_a_rehearsal_on_slurm_is_not_found_by_the_real_run(parsl_site: Site, monkeypatch):
    """Neither Parsl's memo table, kept on disk, nor the journal gives one for the other."""
    folder = parsl_site.folder
    (folder / "bell.json").write_text(json.dumps(bell()))
    before = parsl_site.tasks()["accepted"]

    def run(qpu: str, number: int, **options) -> tuple[object, object]:
        config = qpu_config(qpu, checkpoint=True, run_dir=str(folder / "runs"), **options)
        with parsl.load(config):
            called = sample(bell(), qpu_step="s").result()
            saved = run_payload(folder / "bell.json", outputs=[folder / f"{number}.json"])
            return called, saved.result().qpu

    emulated = "emulated:fez"
    with monkeypatch.context() as patch:
        for name in NOWHERE:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        assert run(emulated, 1) == ((emulated, emulated), emulated)
    assert parsl_site.tasks()["accepted"] == before
    assert run("ibm_quick", 2) == (("ibm_quick", "ibm_quick"), "ibm_quick")
    assert parsl_site.tasks()["accepted"] == before + 2
