"""`qpu site install` and `uninstall`, in a folder that stands for `/`."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from qrmi_workflows.cli.site import site
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.site.install import SiteScripts, require_safe_python
from qrmi_workflows.site.job_folder import JobFolder, forget_ended_runs

POLICY = '[defaults]\ngres = "qpu:{qpu}"\ngres_nodes = "gw1"\nlicence = "qpu_{qpu}"\n[qpus.fez]\n'
CONF = "ClusterName=x\nProlog=/etc/slurm/own.sh\nNodeName=gw1 CPUs=4"


@pytest.fixture
def prefix(tmp_path):
    for name, text in {"qrmi-workflows/site.toml": POLICY, "slurm/slurm.conf": CONF}.items():
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def run(prefix, *argv):
    conf = "/etc/slurm/slurm.conf"
    argv = (argv[0], "--prefix", str(prefix), "--slurm-conf", conf, *argv[1:])
    done = CliRunner().invoke(site, argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def contents(prefix):
    return {
        str(path.relative_to(prefix)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in prefix.rglob("*")
        if path.is_file()
    }


def test_nothing_is_written_without_being_asked(prefix):
    before = contents(prefix)
    shown = run(prefix, "install")

    assert contents(prefix) == before
    assert "Prolog=/etc/qrmi-workflows/slurm/prolog\n" in shown
    assert "NodeName=gw1 Name=qpu Type=fez Count=1 Flags=CountOnly" in shown
    assert "Write QRMI's configuration to /etc/slurm/qrmi_config.json, with mode" in shown
    assert "Restart" not in run(prefix, "uninstall")


def test_what_is_installed_is_taken_back_exactly(prefix):
    before = contents(prefix)
    (prefix / "etc/slurm/slurm.conf").chmod(0o640)
    run(prefix, "install", "--write")
    after = contents(prefix)

    scripts = {path: after[path] for path in after if path.startswith("etc/qrmi-workflows/slurm/")}
    assert {Path(path).name for path in scripts} == {"prolog", "task_prolog", "epilog"}
    assert {mode for _, mode in scripts.values()} == {0o755}
    assert after["etc/slurm/slurm.conf"][1] == 0o640
    assert after["etc/slurm/slurm.conf.before-qpu"][0] == CONF.encode()
    assert b"/etc/slurm/own.sh" in scripts["etc/qrmi-workflows/slurm/prolog"][0]
    assert b"OnUnitInactiveSec" in after["etc/systemd/system/qpu-reap.timer"][0]

    assert "written" not in run(prefix, "install", "--write")
    assert contents(prefix) == after

    run(prefix, "uninstall", "--write")
    (prefix / "etc/slurm/slurm.conf").chmod(before["etc/slurm/slurm.conf"][1])
    assert contents(prefix) == before


def test_the_plan_as_json(prefix):
    plan = json.loads(run(prefix, "install", "--json"))
    modes = {Path(each["path"]).name: each["mode"] for each in plan["files"]}
    assert modes["prolog"] == "0755"
    assert plan["changed"] == []


def test_a_copy_of_a_file_that_was_changed_since_is_kept(prefix):
    run(prefix, "install", "--write")
    conf = prefix / "etc/slurm/slurm.conf"
    conf.write_text(conf.read_text() + "KillWait=60\n")

    run(prefix, "uninstall", "--write")

    assert conf.read_text() == CONF + "KillWait=60\n"
    assert (prefix / "etc/slurm/slurm.conf.before-qpu").read_text() == CONF


def scripts_in(folder, **options):
    return SiteScripts(
        state=folder / "state", config=folder / "c", policy=folder / "p", **options
    )  # fmt: skip


def test_the_prolog_runs_the_sites_own_first_and_never_fails_itself(tmp_path):
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/sh\necho own; [ ! -e fail ] || exit 3\n")
    own.chmod(0o755)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ours; exit 9\n")
    python.chmod(0o755)
    rendered = scripts_in(tmp_path, python=python).render({"prolog": [str(tmp_path / "o*.sh")]})
    script = tmp_path / "prolog"
    script.write_text(rendered["prolog"])

    done = subprocess.run(["sh", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "own\nours\n")

    (tmp_path / "fail").touch()
    done = subprocess.run(["sh", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "own\n")


def test_a_pattern_that_matches_nothing_runs_nothing(tmp_path):
    """As in Slurm: an empty /etc/slurm/prolog.d must not drain every node."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ours\n")
    python.chmod(0o755)
    earlier = [str(tmp_path / "prolog.d" / "*"), str(tmp_path / "absent")]
    rendered = scripts_in(tmp_path, python=python).render({"prolog": earlier, "epilog": earlier})
    for name, printed in (("prolog", "ours\n"), ("epilog", "")):
        (tmp_path / name).write_text(rendered[name])
        environ = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
        done = subprocess.run(["sh", tmp_path / name], env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


@pytest.mark.parametrize(
    ("node", "runs"), [("n1", True), ("n2", False), ("", False), (None, False)]
)
def test_the_epilog_starts_python_only_where_its_prolog_has_acquired(tmp_path, node, runs):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ours\n")
    python.chmod(0o755)
    scripts = scripts_in(tmp_path, python=python)
    (tmp_path / "epilog").write_text(scripts.render({})["epilog"])
    if node is not None:
        folder = scripts.state / "jobs" / "7"
        folder.mkdir(parents=True)
        (folder / "node").write_text(node)

    environ = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
    done = subprocess.run(["sh", tmp_path / "epilog"], env=environ, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "ours\n" if runs else "")


def test_a_task_prolog_of_the_site_that_is_missing_fails_the_task(tmp_path):
    """As in Slurm, which knows no patterns there."""
    own = tmp_path / "own *.sh"
    rendered = scripts_in(tmp_path).render({"task_prolog": [str(own)]})["task_prolog"]
    (tmp_path / "task_prolog").write_text(rendered)

    def run():
        return subprocess.run(["sh", tmp_path / "task_prolog"], capture_output=True, text=True)

    assert run().returncode == 127
    own.write_text("#!/bin/sh\necho export A=1\n")
    own.chmod(0o755)
    assert (run().returncode, run().stdout) == (0, "export A=1\n")


@pytest.fixture
def task_prolog(tmp_path):
    script = tmp_path / "task_prolog"
    script.write_text(scripts_in(tmp_path).render({})["task_prolog"])
    (tmp_path / "state/jobs/7/usage").mkdir(parents=True)

    def run(**variables):
        environ = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", **variables}
        done = subprocess.run(["sh", script], env=environ, capture_output=True, text=True)
        return done.returncode, done.stdout

    return run


def test_the_task_prolog_prints_what_the_prolog_has_left(tmp_path, task_prolog):
    assert task_prolog() == (0, "")
    (tmp_path / "state/jobs/7/environment").write_text("export A=1\n")
    assert task_prolog() == (0, "export A=1\n")
    assert task_prolog(SLURM_JOB_ID="8") == (0, "")


def test_the_task_prolog_says_once_why_the_job_fails(tmp_path, task_prolog):
    (tmp_path / "state/jobs/7/refused").write_text("print qpu: no\n")
    assert task_prolog() == (1, "print qpu: no\n")
    assert task_prolog(SLURM_PROCID="3") == (1, "")


def test_on_other_nodes_tasks_record_their_own_usage(tmp_path, task_prolog):
    here = f"{tmp_path}/state/jobs/7/usage"
    assert task_prolog(QPU_LEASE_USAGE=f"{here}/a.usage:{here}/b.usage") == (0, "")
    assert task_prolog(QPU_LEASE_USAGE="/elsewhere/a.usage") == (0, "unset QPU_LEASE_USAGE\n")


def test_root_does_not_run_a_python_that_others_may_change(tmp_path):
    python = tmp_path / "python"
    python.touch()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else may write to it"):
        require_safe_python(scripts_in(tmp_path, python=python))


def test_a_run_without_a_prolog_of_its_own_does_not_start(tmp_path, task_prolog):
    """Requeued within the same second, a job gets none, and would run without its QPU."""
    folder = JobFolder(tmp_path / "state", "7")
    folder.end_run()
    assert not folder.path.exists()

    code, printed = task_prolog()
    assert (code, printed.startswith("print qpu: Slurm ran no Prolog for this run")) == (1, True)
    assert task_prolog(SLURM_PROCID="1") == (1, "")

    folder.begin_run()
    assert task_prolog() == (0, "")
    folder.end_run()  # it held no QPU
    assert task_prolog() == (0, "")


def test_ended_runs_are_forgotten_after_an_hour(tmp_path, task_prolog):
    JobFolder(tmp_path / "state", "7").end_run()
    forget_ended_runs(tmp_path / "state")
    assert task_prolog()[0] == 1

    os.utime(tmp_path / "state/jobs/7.ended", (1.0, 1.0))
    forget_ended_runs(tmp_path / "state")
    assert task_prolog() == (0, "")
