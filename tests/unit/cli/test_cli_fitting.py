"""`qpu list` and `qpu request` with requests that leave a choice."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from qrmi_workflows.choice import gather
from qrmi_workflows.cli import main
from qrmi_workflows.client.states import Answer
from qrmi_workflows.client.targets import QPUTarget
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease import stage as stage_module
from qrmi_workflows.schedulers.admission import Capacity
from qrmi_workflows.stages import opening

QUBITS = {"a": 5, "b": 20, "c": 50}
QUEUES = {"a": 0, "b": 7, "c": 2}
SITE = """
[defaults]
licence = "qpu_{qpu}"
[qpus.a]
[qpus.b]
[qpus.c]
"""


@pytest.fixture(autouse=True)
def site(commands, tmp_path, monkeypatch):
    """A site with three QPUs; `a` is the least busy, and the smallest."""
    (tmp_path / "site.toml").write_text(f'[site]\nstate = "{tmp_path}/state"\n{SITE}')
    resources = [{"name": name, "type": "oqtopus", "environment": {}} for name in QUBITS]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi_config.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands.write("scontrol", "for q in a b c; do echo LicenseName=qpu_$q Total=1; done")

    def ask_state(qpu: JobQPU, *, seconds: float) -> Answer:
        return Answer(state="online", is_operational=True, queue=QUEUES[qpu.name])

    def fetch_target(qpu: JobQPU, **_: Any) -> QPUTarget:
        text = json.dumps({"n_qubits": QUBITS[qpu.name], "basis_gates": ["cx"]})
        return QPUTarget(qpu=qpu.name, fetched="", calibrated=None, text=text)

    monkeypatch.setattr(gather, "ask_state", ask_state)
    monkeypatch.setattr(gather, "fetch_target", fetch_target)
    capacity = Capacity(free=1, total=1, waiting=0)
    monkeypatch.setattr(
        gather, "_ask_capacities", lambda *_: (dict.fromkeys("abc", capacity), False)
    )


def run(*arguments: str) -> int:
    """Run `qpu` and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    return int(caught.value.code or 0)


def test_the_list_shows_what_would_be_chosen_and_why_not_the_others(capsys):
    assert run("list", "--where", "qubits > 10") == 0
    lines = [line.split(maxsplit=6) for line in capsys.readouterr().out.splitlines()]

    assert [line[0] for line in lines] == ["QPU", "c", "b", "a"]
    assert [line[6].strip() for line in lines[1:]] == [
        "chosen",
        "fits",
        "`qubits > 10`: qubits is 5",
    ]


def test_the_list_as_json(capsys):
    assert run("list", "b|c", "--min-qubits", "30", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)

    assert (first["name"], first["chosen"], first["fits"], first["reason"]) == ("c", True, True, "")
    assert (first["qubits"], first["gates"], first["queue"]) == (50, ["cx"], 2)
    assert (second["name"], second["chosen"], second["may_fit_later"]) == ("b", False, False)
    assert second["reason"] == "it has 20 qubits, not 30"


def test_the_list_says_that_no_qpu_fits(capsys):
    assert run("list", "--min-qubits", "100") == 0
    out, err = capsys.readouterr()
    assert "it has 50 qubits, not 100" in out
    assert "no QPU can satisfy min_qubits=100\n" in err
    assert run("list", "--where", "queue > 100") == 0
    assert "no QPU satisfies where='queue > 100' now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aa", "unknown QPU 'aa' in the site policy"),
        ("x*", "matches 'x*'; must match one of: a, b, c."),
        ("emulated:fes", "unknown model 'fes'"),
    ],
)
def test_a_list_for_a_name_that_no_qpu_has_is_refused(capsys, name, message):
    assert run("list", name) == 2
    assert message in capsys.readouterr().err


def test_the_list_has_the_emulated_qpus_of_a_request(capsys, monkeypatch):
    assert run("list", "a|emulated:fez", "--json") == 0
    real, emulated = json.loads(capsys.readouterr().out)
    assert (real["name"], real["chosen"]) == ("a", True)
    assert (emulated["name"], emulated["chosen"]) == ("emulated:fez", False)
    assert emulated.keys() == real.keys()

    assert run("list", "a|emulated:fez", "--min-qubits", "10") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[0] == "emulated:fez"
    assert lines[2].split()[-1] == "chosen"

    monkeypatch.delenv("QPU_SITE")
    monkeypatch.setenv("QPU_CONFIG", "/nowhere")
    assert run("list", "emulated:fez") == 0
    assert "chosen" in capsys.readouterr().out
    assert run("list", "emulated:fez", "--where", "qubit > 3") == 2
    assert "unknown field 'qubit'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "qbits > 3"], "unknown field 'qbits'; did you mean 'qubits'"),
        (["a+b"], "asks for 2 QPUs; must be a request for one"),
        (["a b"], "is not a QPU's name"),
    ],
)
def test_a_list_for_what_is_no_request_is_refused(capsys, arguments, message):
    assert run("list", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_request_by_condition_prints_the_options_of_the_chosen_qpu(capsys):
    assert run("request", "--min-qubits", "10") == 0
    out, err = capsys.readouterr()
    assert out == "--licenses=qpu_c:1\n"
    assert "chose QPU 'c' for min_qubits=10: least busy of 2 that fit" in err


def test_a_request_by_condition_as_json_has_the_choice(capsys):
    assert run("request", "b|c", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["qpu"] == "c"
    (choice,) = found["choices"]
    assert choice["request"] == "b|c"
    assert choice["rejected"] == {"b": "7 tasks and jobs ahead"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'REQUEST'"),
        (
            ["--min-qubits", "60"],
            "no QPU can satisfy min_qubits=60. The nearest: c: it",
        ),
        (["--min-qubits", "0"], "min_qubits=0: must be a positive integer"),
    ],
)
def test_a_request_that_cannot_be_satisfied_is_refused_without_output(capsys, arguments, message):
    assert run("request", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_a_request_that_nothing_satisfies_now_fails_after_the_wait(capsys, monkeypatch):
    monkeypatch.setenv("QPU_CHOICE_WAIT", "0")
    assert run("request", "--where", "queue > 100") == 1
    assert "no QPU satisfies where='queue > 100' now" in capsys.readouterr().err


def test_a_stage_gets_the_chosen_qpu_and_keeps_it(monkeypatch, capsys):
    asked = []

    def open_stage(_name: str, *, qpu: str, **_options: object) -> None:
        asked.append((qpu, json.loads(os.environ.get("QPU_CHOICE", "{}")).get(qpu, "")))
        raise RequestError("enough")

    monkeypatch.setattr(opening, "open_stage", open_stage)
    monkeypatch.setenv("QPU_CHOICE", "{}")
    monkeypatch.setattr(stage_module, "list_stages", list)
    assert run("stage", "open", "s", "--qpu", "b|c") == 2
    assert "chose QPU 'c' for b|c" in capsys.readouterr().err
    opened = SimpleNamespace(name="s", qpu="b", is_ended=False)
    monkeypatch.setattr(stage_module, "list_stages", lambda: [opened])
    assert run("stage", "open", "s", "--qpu", "b|c") == 2
    assert run("stage", "open", "s", "--qpu", "a") == 2

    assert asked[0][0] == "c"
    assert asked[0][1].startswith("b|c: least busy of 2 that fit")
    assert [qpu for qpu, _ in asked[1:]] == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--qpu'"),
        (["--qpu", "a+b"], "stage 's': a stage has one QPU, not 2"),
        (["--min-qubits", "60"], "no QPU can satisfy"),
    ],
)
def test_a_stage_for_what_is_no_request_for_one_qpu_is_refused(capsys, arguments, message):
    assert run("stage", "open", "s", *arguments) == 2
    assert message in capsys.readouterr().err
