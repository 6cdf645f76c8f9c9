"""`qpu request`: the options for any tool, or a refusal."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.cli import main

SITE = """
[qpus.ibm_fez]
gres = "qpu:{qpu}"
licence = "qpu_{qpu}"
partition = "quantum"
[qpus.FRESNEL]
licence = "absent"
[qpus.ibm_kyiv]
gres = "qpu:{qpu}"
partition = "quantum"
[qpus.apart]
partition = "photonic"
[qpus.theirs]
partition = "quantum"
users = ["no-such-user"]
"""
OPTIONS = ["--partition=quantum", "--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]


@pytest.fixture(autouse=True)
def site(commands, tmp_path, monkeypatch):
    """A site whose Slurm has the GRES and the licence of ibm_fez."""
    (tmp_path / "site.toml").write_text(SITE)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    commands.write("sinfo", "echo qpu:ibm_fez:1,qpu:ibm_kyiv:1")
    commands.write("scontrol", "echo LicenseName=qpu_ibm_fez Total=1")
    return commands


def run(*arguments: str) -> int:
    """Run `qpu request` and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["request", *arguments])
    return int(caught.value.code or 0)


def test_the_options_are_on_one_line(capsys):
    assert run("ibm_fez") == 0
    assert capsys.readouterr().out == " ".join(OPTIONS) + "\n"


def test_an_emulated_qpu_has_no_options_but_a_mistake_beside_it_is_found(capsys):
    assert run("emulated:fez") == 0
    assert capsys.readouterr().out == ""
    assert run("emulated:fez", "--where", "qubit > 3") == 2
    assert "unknown field 'qubit'" in capsys.readouterr().err


def test_the_options_as_json(capsys):
    assert run("ibm_fez", "--json", "--scheduler", "slurm") == 0
    assert json.loads(capsys.readouterr().out) == {
        "qpu": "ibm_fez",
        "count": 1,
        "scheduler": "slurm",
        "options": OPTIONS,
    }


@pytest.mark.parametrize("names", ["ibm_fez+ibm_kyiv", "ibm_fez,ibm_kyiv"])
def test_one_job_asks_for_several_qpus(capsys, names):
    assert run(names) == 0

    both = ["--partition=quantum", "--gres=qpu:ibm_fez:1,qpu:ibm_kyiv:1", OPTIONS[2]]
    assert capsys.readouterr().out == " ".join(both) + "\n"


def test_a_partition_that_the_user_chooses_is_left_to_them(capsys):
    assert run("ibm_fez+apart", "--partition", "debug") == 0
    assert capsys.readouterr().out == " ".join(OPTIONS[1:]) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ibm_fez+ibm_fez"], "must be named once"),
        (["ibm_fez+apart"], "different values of --partition (quantum and photonic)"),
        (["ibm_fez+ibm_fes"], "Did you mean 'ibm_fez'?"),
        (["ibm_fes"], "Did you mean 'ibm_fez'?"),
        (["ibm_fez", "--count", "2"], "Ask for qpu=1 or fewer."),
        (["ibm_fez", "--scheduler", "pbs"], "unknown scheduler 'pbs'"),
        (["FRESNEL"], "this Slurm has no licence 'absent'"),
        (["theirs"], "must be one of: no-such-user"),
    ],
)
def test_a_request_that_cannot_be_granted_is_refused_without_output(arguments, message, capsys):
    assert run(*arguments) == 2

    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_without_the_schedulers_commands_the_options_are_printed_with_a_warning(site, capsys):
    site.write("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")

    assert run("ibm_fez") == 0

    printed = capsys.readouterr()
    assert printed.out.split() == OPTIONS
    assert "not checked against the scheduler: `sinfo" in printed.err
