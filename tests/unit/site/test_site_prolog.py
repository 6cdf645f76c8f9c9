"""The Prolog and the Epilog as processes: they exit with 0 whatever happens, and say why."""

import os
import subprocess
import sys

import pytest
from fake_commands import FakeCommands

from qrmi_workflows.schedulers.gres import make_grants
from qrmi_workflows.schedulers.slurm_grants import GrantedJob
from qrmi_workflows.schedulers.slurm_scripts import ScriptJob
from qrmi_workflows.site import prolog
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.site.scripts import SitePaths

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_UID": str(os.getuid()),
    "SLURM_JOB_GID": str(os.getgid()),
    "SLURM_JOB_USER": "ada",
    "SLURMD_NODENAME": "n1",
    "SLURM_NODELIST": "n[1-2]",
}
POLICY = '[qpus.fez]\nlicence = "qpu_fez"\nusers = ["eve", "bob"]\npartition = "q"\n'
LISTED = "7!N/A!1!1!1!1:00:00!qc!qpu_fez:1!N/A!N/A!N/A!N/A!".replace("!", "\x1f")


@pytest.fixture
def run(tmp_path):
    """Run a script; return its exit code and what it has logged."""
    (tmp_path / "site.toml").write_text(POLICY)
    (tmp_path / "qrmi.json").write_text('{"resources": []}')
    commands = FakeCommands(tmp_path / "bin")
    commands.write("squeue", f"printf '%s\\n' '{LISTED}'")
    commands.write("scontrol", "")

    def run_script(name, *options, **variables):
        paths = ("--state", "state", "--config", "qrmi.json", "--policy", "site.toml")
        argv = [sys.executable, "-I", "-m", f"qrmi_workflows.site.{name}", *(options or paths)]
        environ = {"PATH": f"{commands.folder}:/usr/bin:/bin", **JOB, **variables}
        done = subprocess.run(argv, env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    run_script.commands = commands
    run_script.refused = tmp_path / "state/jobs/7/refused"
    return run_script


def test_a_user_whom_the_policy_does_not_name_is_refused(run):
    logged = run("prolog")

    assert "job 7 of ada is refused: QPU 'fez': user 'ada' may not use it" in logged
    assert run.refused.read_text().startswith("print qpu: QPU 'fez': user 'ada' may not use it")
    (update,) = run.commands.calls("scontrol")
    assert update.startswith("update JobId=7 AdminComment=qpu: QPU 'fez'")


def test_a_qpu_that_the_site_does_not_define_is_refused(run):
    run("prolog", SLURM_JOB_USER="eve")
    assert "the site does not define it" in run.refused.read_text()


def test_only_the_first_node_asks(run):
    assert run("prolog", SLURMD_NODENAME="n2") == ""
    assert run.commands.calls("squeue") == []


def test_a_silent_scheduler_lets_the_job_start(run):
    run.commands.write("squeue", "exit 1")
    assert "cannot tell which QPUs job 7 was granted" in run("prolog")
    assert not run.refused.exists()


@pytest.mark.parametrize("script", ["prolog", "epilog"])
@pytest.mark.parametrize("job_id", ["../7", "", "7 8"])
def test_what_is_no_job_is_ignored(run, script, job_id):
    assert run(script, SLURM_JOB_ID=job_id) == ""


@pytest.mark.parametrize("script", ["prolog", "epilog"])
def test_wrong_arguments_drain_no_node(run, script):
    assert "SystemExit" in run(script, "--nonsense")


def test_a_policy_with_a_mistake_drains_no_node(run, tmp_path):
    (tmp_path / "site.toml").write_text("[qpus.fez]\nlanes = 0\n")
    assert "site.toml" in run("prolog")


def test_the_epilog_of_another_node_leaves_the_job_alone(run, tmp_path):
    folder = JobFolder(tmp_path / "state", "7")
    folder.create("n1", os.getuid(), os.getgid())

    run("epilog", SLURMD_NODENAME="n2")
    assert folder.path.exists()

    run("epilog")
    assert not folder.path.exists()


MISTAKES = {
    "syntax": '[qpus.fez]\nlicence = "qpu_fez\n',
    "key": POLICY + "lanes = 0\n",
    "pattern": '[defaults]\nlicence = "qpu_{qpu}"\nlanes =\n[qpus.fez]\n',
    "header": '[qpus.fez\nlicence = "qpu_fez"\n',
    "empty": "",
    "missing": None,
}


@pytest.fixture
def mistaken(tmp_path, run, request):
    """The site policy with a mistake."""
    path = tmp_path / "site.toml"
    path.unlink() if request.param is None else path.write_text(request.param)


@pytest.mark.parametrize("mistaken", MISTAKES.values(), ids=MISTAKES, indirect=True)
def test_a_job_with_a_qpu_is_refused_while_the_policy_cannot_be_read(run, mistaken):
    logged = run("prolog")

    assert "job 7 of ada is refused: the site policy" in logged
    refused = run.refused.read_text()
    assert "site.toml" in refused
    assert refused.rstrip().endswith("Tell your administrators.")
    update = run.commands.calls("scontrol")[0]
    assert update.startswith("update JobId=7 AdminComment=qpu: the site policy")


@pytest.mark.parametrize("mistaken", MISTAKES.values(), ids=MISTAKES, indirect=True)
@pytest.mark.parametrize("licence", ["(null)", "matlab:2", "xqpu_fez_x:1"])
def test_a_job_without_a_qpu_runs_while_the_policy_cannot_be_read(run, mistaken, licence):
    run.commands.write("squeue", f"printf '%s\\n' '{LISTED.replace('qpu_fez:1', licence)}'")

    assert "job 7 starts" in run("prolog")

    assert not run.refused.exists()
    assert run.commands.calls("scontrol") == []


def test_the_last_policy_tells_which_jobs_ask_for_a_qpu(run, tmp_path):
    """Here, a GRES that jobs without a QPU hold, too: only both are a request for the QPU."""
    policy = '[qpus.fez]\ngres = "gateway"\nlicence = "quantum"\nusers = ["eve"]\npartition = "q"\n'
    (tmp_path / "site.toml").write_text(policy)
    both = LISTED.replace(
        "qpu_fez:1\x1fN/A\x1fN/A\x1fN/A", "quantum:1\x1fN/A\x1fN/A\x1fgres:gateway:1"
    )
    run.commands.write("squeue", f"printf '%s\\n' '{both}'")
    assert "may not use it" in run("prolog")

    (tmp_path / "site.toml").write_text(policy + "[qpus.new]\nlicence = 'brand_new'\nlanes = x\n")
    assert "refused: the site policy" in run("prolog")
    new = LISTED.replace("qpu_fez", "brand_new")
    run.commands.write("squeue", f"printf '%s\\n' '{new}'")
    assert "refused: the site policy" in run("prolog")

    (tmp_path / "site.toml").unlink()
    run.commands.write("squeue", f"printf '%s\\n' '{both}'")
    assert "refused: the site policy" in run("prolog")
    run.commands.write("squeue", f"printf '%s\\n' '{both.replace('quantum:1', '(null)')}'")
    assert "job 7 starts" in run("prolog")
    assert not run.refused.exists()


def test_a_batch_job_is_left_to_qrmis_plugin_while_the_policy_cannot_be_read(run, tmp_path):
    (tmp_path / "site.toml").write_text("[")
    option = {"SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu": "fez"}

    assert "job 7 starts" in run("prolog", **option)

    srun = LISTED.replace("qpu_fez:1", "(null)").replace("1\x1f1:00", "0\x1f1:00")
    run.commands.write("squeue", f"printf '%s\\n' '{srun}'")
    assert "job 7 of ada is refused" in run("prolog", **option)


CONFIGS = {"missing": None, "syntax": "{", "list": "[]", "type": '{"resources": [{"name": "fez"}]}'}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("licence", ["qpu_fez:1", "(null)"])
def test_without_the_qpus_settings_only_jobs_with_a_qpu_are_refused(run, tmp_path, config, licence):
    path = tmp_path / "qrmi.json"
    path.unlink() if config is None else path.write_text(config)
    run.commands.write("squeue", f"printf '%s\\n' '{LISTED.replace('qpu_fez:1', licence)}'")

    logged = run("prolog", SLURM_JOB_USER="eve")

    assert ("is refused" in logged) is (licence == "qpu_fez:1") is run.refused.exists()
    assert "qrmi.json" in (run.refused.read_text() if run.refused.exists() else "qrmi.json")


def test_a_job_that_cannot_be_told_is_cancelled(run, tmp_path):
    run.commands.write("scancel", "")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/jobs").write_text("not a folder")

    logged = run("prolog", SLURM_JOB_USER="eve")

    assert "job 7 is cancelled, because" in logged
    assert run.commands.calls("scancel") == ["--quiet 7"]
    (update,) = run.commands.calls("scontrol")
    assert "state/jobs" in update


def test_a_mistake_of_ours_fails_the_job(tmp_path, monkeypatch):
    """It does not start without its lease."""
    (tmp_path / "site.toml").write_text('[qpus.fez]\nlicence = "qpu_fez"\n')
    paths = SitePaths(
        state=tmp_path / "state", config=tmp_path / "c", policy=tmp_path / "site.toml"
    )
    job = ScriptJob.from_environ(JOB)
    grants = make_grants((), ("qpu_fez:1",))
    granted = GrantedJob(grants=grants, is_batch=True, limit=60, account=None)
    failures = []
    monkeypatch.setattr(prolog, "ask_granted", lambda *_args, **_options: granted)
    monkeypatch.setattr(prolog, "report_failure", lambda *args, **_options: failures.append(args))
    monkeypatch.setattr(prolog, "read_notice", lambda *_args: 1 / 0)

    prolog._prolog(job, paths)

    assert failures == [("7", "qpu: ZeroDivisionError: division by zero")]
    assert "division by zero" in (tmp_path / "state/jobs/7/refused").read_text()
