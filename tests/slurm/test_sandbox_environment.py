"""The sandbox's environment: every nested shell and job finds this sandbox and no other."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from inotify import Watch
from site_under_test import QPU, Site, run
from waiting import wait_until

from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import gres_of_job
from qrmi_workflows.schedulers.slurm import Slurm

pytestmark = pytest.mark.slurm

BARE = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
# Prints the size of the cluster that responds, and where the QPUs are. The second sinfo runs
# without SLURM_CONF, because Snakemake's jobstep executor strips it.
WHICH_SITE = """
echo "$(sinfo --noheader --format=%D) $(env -u SLURM_CONF sinfo --noheader --format=%D)" \
"$QPU_CONFIG $QPU_SITE $QPU_SANDBOX $no_proxy $NO_PROXY"
"""


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The shared sandbox: nothing here stops a daemon."""
    return shared_site


def expected_site(site: Site, nodes: int = 2) -> str:
    """Return the output expected of WHICH_SITE in a sandbox."""
    folder = site.box.directory
    places = f"{folder}/emulator/qrmi_config.json {folder}/site.toml {folder}"
    return f"{nodes} {nodes} {places} 127.0.0.1 127.0.0.1"


def test_env_prints_lines_for_a_shell(site: Site) -> None:
    """A shell that evaluates them finds the sandbox, and so do shells nested in it."""
    lines = site.qpu("env").stdout
    assert all(line.startswith("export ") for line in lines.splitlines())
    nested = f"sh -c {shlex.quote(f'sh -c {shlex.quote(WHICH_SITE)}')}"
    done = run("sh", "-c", f"{lines}\n{nested}", environ=BARE)
    assert done.stdout.strip() == expected_site(site), done.stderr


def test_env_as_json_prints_the_same_variables(site: Site) -> None:
    """PATH begins with the wrappers."""
    variables = json.loads(site.qpu("env", "--json").stdout)
    assert variables == site.box.environment()
    folder = str(site.box.directory)
    assert variables["PATH"] == f"{folder}/bin:{os.environ['PATH']}"
    assert variables["SLURM_CONF"] == f"{folder}/etc/slurm.conf"
    assert set(variables) == {
        "PATH",
        "SLURM_CONF",
        "QPU_CONFIG",
        "QPU_SITE",
        "QPU_SANDBOX",
        "QPU_STATE",
        "no_proxy",
        "NO_PROXY",
    }


def test_no_credential_is_shown(site: Site) -> None:
    """QPU_CONFIG is a path, and only the file's owner can read the credentials in it."""
    config = Path(site.box.environment()["QPU_CONFIG"])
    assert config.stat().st_mode & 0o777 == 0o600
    secrets = {
        value
        for qpu in load_qpus(config).values()
        for name, value in qpu.environment.items()
        if any(word in name for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))
    }
    assert secrets
    shown = "".join(site.qpu(verb).stdout + site.qpu(verb).stderr for verb in ("env", "status"))
    assert not any(secret in shown for secret in secrets)


def test_shell_runs_a_command_and_returns_its_exit_code(site: Site) -> None:
    """Options after the command belong to the command."""
    done = site.qpu("shell", "--", "sh", "-c", f"{WHICH_SITE}\nexit 7")
    assert (done.returncode, done.stdout.strip()) == (7, expected_site(site))
    assert site.qpu("shell", "sinfo", "--noheader", "--format=%D").stdout == "2\n"


def test_shell_defaults_to_the_users_shell(site: Site) -> None:
    """Without a command, $SHELL is started."""
    environ = BARE | {"SHELL": str(site.work / "own-shell")}
    (site.work / "own-shell").write_text(f"#!/bin/sh\n{WHICH_SITE}")
    (site.work / "own-shell").chmod(0o755)
    done = run(*QPU, "shell", "--dir", str(site.box.directory), environ=environ)
    assert done.stdout.strip() == expected_site(site)


def test_shell_reports_an_unknown_command(site: Site) -> None:
    """The message names the command and has no traceback."""
    done = site.qpu("shell", "no-such-command")
    assert done.returncode == 1
    assert done.stderr.startswith("qpu: 'no-such-command': No such file or directory")


def test_a_shells_own_sandbox_is_the_default_in_it(site: Site) -> None:
    """In the shell, `qpu` is on PATH and `qpu sandbox status` needs no --dir."""
    done = site.qpu("shell", "env", "-C", "/", "qpu", "sandbox", "status", "--json")
    assert json.loads(done.stdout)["directory"] == str(site.box.directory)


@pytest.mark.parametrize("export", ["ALL", "NONE", "HOME"])
def test_jobs_and_job_steps_find_the_sandbox(site: Site, export: str) -> None:
    """They do so regardless of what sbatch exports, even if SLURM_CONF is stripped."""
    wrapped = shlex.quote(WHICH_SITE)
    job = site.submit(f"{WHICH_SITE}\nsrun sh -c {wrapped}", f"--export={export}", "--output=out")
    site.wait_for(job)
    assert (site.work / "out").read_text().splitlines() == [
        expected_site(site),
        expected_site(site),
    ]


def test_a_job_keeps_the_users_configuration(site: Site) -> None:
    """The sandbox's QPU_CONFIG is only a default."""
    job = site.submit('echo "$QPU_CONFIG"', "--export=ALL,QPU_CONFIG=/my.json", "--output=out")
    site.wait_for(job)
    assert (site.work / "out").read_text() == "/my.json\n"


def test_a_sandbox_started_from_the_shell_of_another(make_site: Callable[..., Site]) -> None:
    """The inner one's commands reach the inner one, and the outer one is undisturbed."""
    outer = make_site("outer", nodes=1)
    inner = outer.box.directory.parent / "inner"
    qpu = [*QPU, "up", "--dir", str(inner), "--nodes", "3"]
    done = outer.qpu("shell", "--", *qpu)
    assert done.returncode == 0, done.stderr
    try:
        argv = ("shell", "--", *QPU, "shell", "--dir", str(inner), "sh", "-c", WHICH_SITE)
        assert outer.qpu(*argv).stdout.startswith("3 3 ")
        assert outer.qpu("shell", "sh", "-c", WHICH_SITE).stdout.strip() == expected_site(
            outer, nodes=1
        )
    finally:
        run(*QPU, "down", "--dir", str(inner))


def test_no_proxy_is_extended(site: Site) -> None:
    """The user's entries stay, and the sandbox's is added once."""
    variables = site.box.environment({"PATH": "/bin", "no_proxy": "a.example,.b.example"})
    assert variables["no_proxy"] == "a.example,.b.example,127.0.0.1"
    assert variables["NO_PROXY"] == "127.0.0.1"
    assert site.box.environment(variables) == variables


def test_jobs_start_within_a_second(site: Site) -> None:
    """Measured by Slurm's own clock, with and without a QPU; a busy machine may delay a job."""

    def delay(options: list[str]) -> float:
        job = site.submit("true", *options)
        site.wait_for(job)
        times = site.show(job)
        submitted, started = (
            datetime.fromisoformat(times[name]) for name in ("SubmitTime", "StartTime")
        )
        return (started - submitted).total_seconds()

    for options in ([], ["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]):
        assert min(delay(options) for _ in range(3)) <= 1


@pytest.mark.usefixtures("in_sandbox")
def test_the_site_policy_matches_what_slurm_offers() -> None:
    """Every QPU in qrmi_config.json is in the policy, and Slurm accepts the options."""
    slurm, policy = Slurm(), load_site_policy()
    assert set(policy.qpus) == set(load_qpus()) == {"ibm_fez", "FRESNEL"}
    for name in policy.qpus:
        request = QPURequest(qpu=name)
        slurm.check_offered(request, policy)
        options = slurm.qpu_options(request, policy)
        assert options == [f"--gres=qpu:{name}:1", f"--licenses=qpu_{name}:1"]
        assert run("srun", *options, "true").returncode == 0


def test_a_licence_is_exclusive_across_nodes(site: Site) -> None:
    """Of two jobs that request one QPU on different nodes, the second waits for the first."""
    options = ["--gres=qpu:FRESNEL:1", "--licenses=qpu_FRESNEL:1"]
    first = site.submit("while [ ! -e go ]; do sleep 0.1; done", *options, "--nodelist=n1")
    site.wait_for(first, "RUNNING")
    second = site.submit("true", *options, "--nodelist=n2")
    wait_until(lambda: site.show(second)["Reason"] == "Licenses", "the second job to wait")
    (site.work / "go").touch()
    site.wait_for(second)
    held = gres_of_job(site.slurm("scontrol", "show", "job", str(second)))
    assert held == {"state": "COMPLETED", "gres": "qpu:FRESNEL:1", "licences": "qpu_FRESNEL:1"}


def test_slurm_rejects_an_unknown_qpu_at_submission(site: Site) -> None:
    """A GRES type that no node has fails in sbatch, not in the queue."""
    environ = os.environ | site.box.environment()
    done = run("sbatch", "--gres=qpu:none:1", "--wrap=true", environ=environ)
    assert done.returncode == 1
    assert "Requested node configuration is not available" in done.stderr


def test_everything_listens_on_the_loopback_interface_only(site: Site) -> None:
    """This holds for the daemons and for clients that wait for a job.

    If the host name resolves to another address, Slurm has to listen on all addresses.
    """
    site.submit("srun sh -c 'touch started; sleep 100'")
    wait_until((site.work / "started").exists, "the job step to start")
    members = [psutil.Process(pid) for pid in site.pids().values()]
    members += [child for process in members for child in process.children(recursive=True)]
    members += [process for process in psutil.process_iter() if _is_srun_of(process, site)]
    listening = []
    for process in members:
        with suppress(psutil.NoSuchProcess):  # slurmctld's children may end at any time
            listening += [
                connection.laddr.ip
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
    assert len(listening) >= 5
    own = socket.gethostbyname(socket.gethostname())
    assert set(listening) == {"127.0.0.1", own if own.startswith("127.") else "0.0.0.0"}  # noqa: S104


def _is_srun_of(process: psutil.Process, site: Site) -> bool:
    try:
        return process.name() == "srun" and process.cwd() == str(site.work)
    except psutil.Error:
        return False


def test_the_systems_slurm_configuration_is_never_opened(
    make_site: Callable[..., Site],
) -> None:
    """From `up` to `down`, inotify reports that no file in /etc/slurm is opened."""
    folder = Path("/etc/slurm")
    folder.mkdir(exist_ok=True)
    with Watch([folder, *(path for path in folder.rglob("*") if path.is_dir())]) as watch:
        site = make_site()
        site.wait_for(site.submit("srun true", "--gres=qpu:FRESNEL:1", "--export=NONE"))
        site.slurm("scontrol", "show", "config")
        site.qpu("status")
        site.qpu("down")
        assert watch.events() == 0
        list(folder.iterdir())
        assert watch.events() > 0, "the watch reports no events"
