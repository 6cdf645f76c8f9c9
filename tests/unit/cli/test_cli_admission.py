"""`qpu site maintenance` and `qpu site reconcile`: their arguments and what they print."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from waiting import wait_until

from qrmi_workflows.cli import main


@pytest.fixture
def qpu(monkeypatch, tmp_path, capsys, commands):
    """Run a command at a site with two QPUs; return its exit code, stdout and stderr."""
    commands.write("scontrol", 'test "$5" != licenses || echo "LicenseName=qpu_a Total=1"')
    (tmp_path / "site.toml").write_text(
        f'[site]\nstate = "{tmp_path}/state"\n[qpus.a]\nlicence = "qpu_a"\n[qpus.b]\n'
    )
    (tmp_path / "qrmi.json").write_text('{"resources": []}')
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "qrmi.json"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        return (ended.value.code, *capsys.readouterr())

    run.commands = commands
    return run


def test_qpus_are_taken_out_of_service_and_back(qpu):
    code, out, err = qpu("site", "maintenance", "a", "b", "on", "--message", "Cooling")
    _, listed, _ = qpu("site", "maintenance")
    _, shown, _ = qpu("list", "--json")
    _, ended, _ = qpu("site", "maintenance", "a", "b", "off", "--json")

    assert (code, out) == (0, "reserve licence qpu_a\n")
    assert err.startswith("qpu: QPU 'b': Slurm cannot keep its jobs pending")
    assert [line.split()[0] for line in listed.splitlines()] == ["QPU", "a", "b"]
    assert "by hand" in listed
    assert "Cooling" in listed
    reasons = [row["reason"] for row in json.loads(shown)]
    assert all(each.startswith("in maintenance since") for each in reasons)
    assert json.loads(ended)["away"] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("a",), "must be one or more names of QPUs, and `on` or `off`"),
        (("on",), "must be one or more names of QPUs, and `on` or `off`"),
        (("a", "maybe"), "must be one or more names of QPUs, and `on` or `off`"),
        (("a", "on"), "`on` needs --message"),
        (("a", "on", "--message", ""), "`on` needs --message"),
        (("a", "off", "--message", "x"), "--message is for `on`"),
        (("--message", "x"), "--message is for `on`"),
        (("z", "on", "--message", "x"), "unknown QPU 'z'"),
    ],
)
def test_wrong_arguments_are_refused(qpu, argv, message):
    code, _, err = qpu("site", "maintenance", *argv)

    assert code == 2
    assert message in " ".join(err.split())


def test_a_scheduler_that_refuses_is_reported(qpu):
    qpu.commands.write(
        "scontrol",
        'test "$1" != create || { echo Invalid license specification >&2; exit 1; }\n'
        'test "$5" != licenses || echo "LicenseName=qpu_a Total=1"',
    )

    code, _, err = qpu("site", "maintenance", "a", "on", "--message", "Cooling")

    assert code == 1
    assert "cannot reserve licence qpu_a: `scontrol create` failed" in err
    assert "Invalid license specification" in err


def test_a_qpu_that_nobody_defines_is_named_by_the_reconciler(qpu):
    code, out, err = qpu("site", "reconcile")
    _, document, _ = qpu("site", "reconcile", "--json")

    assert (code, out) == (0, "")
    assert "qpu: QPU 'a': qrmi_config.json does not define it" in err
    assert json.loads(document)["qpus"]["a"]["state"] is None


def test_a_lease_of_a_qpu_in_maintenance_is_refused_with_the_message(qpu, tmp_path):
    definition = {"name": "a", "type": "pasqal-cloud", "environment": {}}
    (tmp_path / "qrmi.json").write_text(json.dumps({"resources": [definition]}))
    qpu("site", "maintenance", "a", "on", "--message", "Cooling")

    code, _, err = qpu("lease", "exec", "--qpu", "a", "--", "true")

    assert code == 1
    assert "QPU 'a' is in maintenance since" in err
    assert ": Cooling. Try again when `qpu list` shows it as available." in err


def test_the_reconciler_goes_on_after_a_mistake_in_the_site_policy(qpu, tmp_path):
    path = tmp_path / "site.toml"
    policy = path.read_text()
    path.write_text("lanes = 0")
    argv = [sys.executable, "-m", "qrmi_workflows", "site", "reconcile", "--every", "1"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert "site.toml" in process.stderr.readline()
        path.write_text(policy)
        wait_until(lambda: qpu.commands.calls("scontrol"), "the scheduler to be asked")
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
