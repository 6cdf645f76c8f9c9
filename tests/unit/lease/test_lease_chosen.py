"""Requests that leave a choice, in processes: outside of jobs, in jobs, and when a QPU refuses."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from qrmi_workflows.choice import gather, reasons
from qrmi_workflows.choice.choose import Choice
from qrmi_workflows.choice.reasons import choice_variable, note_choices, why_chosen
from qrmi_workflows.client.states import Answer
from qrmi_workflows.client.targets import QPUTarget
from qrmi_workflows.config.job import JobQPU, write_job
from qrmi_workflows.errors import LeaseError, RequestError, UnknownQPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease import chosen as module
from qrmi_workflows.lease.chosen import Chosen, open_chosen, resolve

TYPE = "ibm-quantum-compute-service"
SITE = """
[defaults]
licence = "qpu_{qpu}"
[qpus.a]
[qpus.b]
[qpus.c]
require_grant = false
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A site with three QPUs, of which `b` is the least busy, and then `c`."""
    resources = [{"name": name, "type": TYPE, "environment": {}} for name in "abc"]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}/state"\n{SITE}')
    queues = {"a": 5, "b": 0, "c": 3}

    def ask_state(qpu: Any, *, seconds: float) -> Answer:
        return Answer(state="online", is_operational=True, queue=queues[qpu.name])

    monkeypatch.setattr(gather, "ask_state", ask_state)
    monkeypatch.setattr(gather, "_ask_capacities", lambda *_: ({}, False))
    monkeypatch.setattr(reasons, "_noted", {})
    monkeypatch.setattr(module, "granted_qpus", lambda _environ: frozenset())
    monkeypatch.setattr(module, "assumed_qpus", frozenset)
    return {
        "QPU_CONFIG": str(tmp_path / "qrmi_config.json"),
        "QPU_SITE": str(tmp_path / "site.toml"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }


@pytest.fixture
def set_config(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's own environment have the same files."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_names_are_not_looked_up(environ):
    assert resolve(None, environ=environ) == Chosen(qpus=None)
    assert resolve("x", environ=environ) == Chosen(qpus="x")
    assert resolve(["x", "y"], environ=environ) == Chosen(qpus=["x", "y"])
    assert resolve("x+y", environ=environ) == Chosen(qpus=["x", "y"])
    assert resolve(["x"], environ=environ) == Chosen(qpus=["x"])


@pytest.mark.usefixtures("set_config")
def test_programs_that_name_no_qpu_get_what_the_environment_asks_for(environ):
    assert resolve(None, environ={**environ, "QPU_NAME": "a|b"}).qpus == "b"
    assert resolve(None, environ={**environ, "QPU_NAME": "x"}) == Chosen(qpus="x")
    assert resolve("c", environ={**environ, "QPU_NAME": "a|b"}).qpus == "c"
    carried = write_job([JobQPU(name="a", type=TYPE, environment={}, token="t")])
    environ = {**environ, **carried, "QPU_NAME": "b"}
    assert resolve(None, environ=environ) == Chosen(qpus=None)


@pytest.mark.usefixtures("set_config")
def test_outside_of_jobs_the_least_busy_one_is_chosen_and_noted(environ):
    found = resolve("a|b", environ=environ)

    assert found.qpus == "b"
    assert why_chosen("b", environ) == "a|b: least busy of 2 that fit: 0 ahead (a: 5)"
    assert resolve("*+*", environ=environ).qpus == ["b", "c"]


@pytest.mark.usefixtures("set_config")
@pytest.mark.parametrize("request_", ["a|b", "*", "a*"])
def test_in_a_job_that_holds_one_qpu_that_matches_nothing_is_chosen(environ, request_):
    carried = JobQPU(name="a", type=TYPE, environment={}, token="t")
    environ = {**environ, **write_job([carried])}

    found = resolve(request_, where="queue < 1", environ=environ)
    assert found == Chosen(qpus="a")


@pytest.mark.usefixtures("set_config")
def test_in_a_job_too_its_qpu_must_have_what_does_not_change(environ, monkeypatch):
    carried = JobQPU(name="a", type=TYPE, environment={}, token="t")
    environ = {**environ, **write_job([carried])}

    def fetch(*_: Any, **__: Any) -> QPUTarget:
        configuration = {"n_qubits": 133, "basis_gates": []}
        text = json.dumps({"configuration": configuration, "properties": {}})
        return QPUTarget(qpu="a", fetched="", calibrated=None, text=text)

    with pytest.raises(RequestError, match="pasqal-cloud"):
        resolve("a*", type="pasqal-cloud", environ=environ)
    monkeypatch.setattr(gather, "fetch_target", fetch)
    assert resolve("a*", min_qubits=133, environ=environ).qpus == "a"
    with pytest.raises(RequestError, match="it has 133 qubits, not 150"):
        resolve("a*", min_qubits=150, environ=environ)


@pytest.mark.usefixtures("set_config")
def test_in_a_job_what_is_not_known_of_its_qpu_was_met_before(environ):
    carried = JobQPU(name="a", type=TYPE, environment={}, token="t")

    found = resolve("a*", min_qubits=150, environ={**environ, **write_job([carried])})
    assert found == Chosen(qpus="a")


@pytest.mark.usefixtures("set_config")
def test_in_a_job_that_holds_several_the_choice_is_among_those(environ, monkeypatch):
    monkeypatch.setattr(module, "granted_qpus", lambda _environ: frozenset({"a", "c"}))

    assert resolve("*", environ=environ).qpus == "c"
    assert resolve("*+*", environ=environ).qpus == ["c", "a"]
    with pytest.raises(UnknownQPUError, match="among the QPUs that this job holds"):
        resolve("b|b", min_qubits=1, environ=environ)


@pytest.mark.usefixtures("set_config")
def test_in_a_job_without_a_grant_only_qpus_that_need_none_can_be_chosen(environ):
    environ = {**environ, "SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c"}

    assert resolve("*", environ=environ).qpus == "c"
    site = Path(environ["QPU_SITE"])
    site.write_text(site.read_text().replace("require_grant = false", ""))
    with pytest.raises(RequestError, match=r"job 7 holds no QPU, so none can be chosen for \*"):
        resolve("*", environ=environ)
    assert resolve("a|emulated:fez", environ=environ).qpus == "emulated:fez"
    with pytest.raises(RequestError, match="unknown field 'qubit'"):
        resolve("emulated:fez", where="qubit > 3", environ=environ)


@pytest.mark.usefixtures("set_config")
def test_a_qpu_that_refuses_its_lease_is_replaced_by_another_one(environ, caplog):
    opened = []

    def choose(avoid: Collection[str]) -> Chosen:
        return resolve("a|b|c", avoid=avoid, environ=environ)

    def open_(chosen: Chosen) -> str:
        opened.append(chosen.qpus)
        if chosen.qpus != "a":
            raise LeaseError(f"QPU {chosen.qpus!r} could not be acquired: offline.", chosen.qpus)
        return "open"

    assert open_chosen(choose, open_) == "open"
    assert opened == ["b", "c", "a"]
    assert "QPU 'b' could not be acquired: offline. Chose c instead." in caplog.text


@pytest.mark.usefixtures("set_config")
def test_if_all_refuse_the_last_error_is_raised(environ):
    def choose(avoid: Collection[str]) -> Chosen:
        return resolve("a|b", avoid=avoid, environ=environ)

    def open_(chosen: Chosen) -> str:
        raise LeaseError(f"no {chosen.qpus}", str(chosen.qpus))

    with pytest.raises(LeaseError, match="no a"):
        open_chosen(choose, open_)


@pytest.mark.usefixtures("set_config")
def test_a_rerun_stays_with_the_qpu_that_has_the_steps_tasks(environ, monkeypatch, tmp_path):
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    entry, _ = Journal().step("s").claim("0" * 64, qpu="a", program="sampler")
    entry.submitted("task")
    asked = []

    def choose(avoid: Collection[str]) -> Chosen:
        asked.append(list(avoid))
        return resolve("a|b", step="s", avoid=avoid, environ=environ)

    def open_(chosen: Chosen) -> str:
        raise LeaseError(f"no {chosen.qpus}", str(chosen.qpus))

    with pytest.raises(LeaseError, match="no a"):
        open_chosen(choose, open_)
    assert asked == [[]]
    assert resolve("a|b", step="another", environ=environ).qpus == "b"


def test_a_qpu_that_was_asked_for_by_name_is_not_replaced():
    def open_(_: Chosen) -> str:
        raise LeaseError("offline", "a")

    asked = []

    def choose(avoid: Collection[str]) -> Chosen:
        asked.append(list(avoid))
        return Chosen(qpus="a")

    with pytest.raises(LeaseError, match="offline"):
        open_chosen(choose, open_)
    assert asked == [[]]


def test_a_fallback_does_not_name_the_chosen_qpu_again():
    choice = Choice(qpu="b", request="*", why="")
    found = Chosen(qpus="b", choices=(choice,))

    assert found.without_itself("b,c", {}) == ["c"]
    assert found.without_itself(None, {"QPU_FALLBACK": "b,c"}) == ["c"]
    assert found.without_itself(None, {}) is None
    assert Chosen(qpus="b").without_itself("b,c", {}) == "b,c"


def test_a_job_is_told_why_its_qpu_was_chosen():
    text = 'queue <\n 5 and name != "\x1b"'
    variables = choice_variable([Choice(qpu="b", request=text, why="no other fits")])

    assert why_chosen("b", variables) == 'queue < 5 and name != "?": no other fits'
    assert why_chosen("a", variables) == ""
    assert choice_variable([]) == {}
    for broken in ("", "[", "[]", "5", '{"b": 5}'):
        assert why_chosen("b", {"QPU_CHOICE": broken}) == ""


def test_a_choice_of_this_process_comes_before_that_of_its_job(monkeypatch):
    monkeypatch.setattr(reasons, "_noted", {})
    note_choices([Choice(qpu="b", request="*", why="mine")])
    assert why_chosen("b", {"QPU_CHOICE": '{"b": "theirs"}'}) == "*: mine"
