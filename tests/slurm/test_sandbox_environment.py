"""The way to the sandbox: every command finds it, however deep, in jobs too, and it alone."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from inotify import Watch
from site_under_test import QPU, Site, run, wait

from qrmi_workflows.config import load_qpus, load_site_policy
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm import check_offered, gres_of_job, qpu_options

pytestmark = pytest.mark.slurm

BARE = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
# Which Slurm answers, and where the QPUs are: asked plainly, and without SLURM_CONF as Snakemake's
# jobstep leaves a step.
WHO = """
echo "$(sinfo --noheader --format=%D) $(env -u SLURM_CONF sinfo --noheader --format=%D)" \
"$QPU_CONFIG $QPU_SITE $QPU_SANDBOX $no_proxy $NO_PROXY"
"""


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The sandbox of all tests: nothing here ends a daemon."""
    return shared_site


def who(site: Site, nodes: int = 2) -> str:
    """Return what WHO prints in a sandbox."""
    folder = site.box.directory
    places = f"{folder}/emulator/qrmi_config.json {folder}/site.toml {folder}"
    return f"{nodes} {nodes} {places} 127.0.0.1 127.0.0.1"


def test_env_is_lines_for_a_shell(site: Site) -> None:
    """A shell that evaluates them finds the sandbox, and so do all shells in it."""
    lines = site.qpu("env").stdout
    assert all(line.startswith("export ") for line in lines.splitlines())
    nested = f"sh -c {shlex.quote(f'sh -c {shlex.quote(WHO)}')}"
    done = run("sh", "-c", f"{lines}\n{nested}", environ=BARE)
    assert done.stdout.strip() == who(site), done.stderr


def test_env_as_json_is_the_same(site: Site) -> None:
    """For programs; PATH begins with the wrappers."""
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
    """QPU_CONFIG is a path; the credentials in that file are for its owner alone."""
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


def test_shell_runs_a_command_and_passes_its_exit_code_on(site: Site) -> None:
    """Its options are its own."""
    done = site.qpu("shell", "--", "sh", "-c", f"{WHO}\nexit 7")
    assert (done.returncode, done.stdout.strip()) == (7, who(site))
    assert site.qpu("shell", "sinfo", "--noheader", "--format=%D").stdout == "2\n"


def test_shell_is_the_users_own(site: Site) -> None:
    """Without a command it is $SHELL."""
    environ = BARE | {"SHELL": str(site.work / "own-shell")}
    (site.work / "own-shell").write_text(f"#!/bin/sh\n{WHO}")
    (site.work / "own-shell").chmod(0o755)
    done = run(*QPU, "shell", "--dir", str(site.box.directory), environ=environ)
    assert done.stdout.strip() == who(site)


def test_a_command_that_does_not_exist(site: Site) -> None:
    """It is named, without a traceback."""
    done = site.qpu("shell", "no-such-command")
    assert done.returncode == 1
    assert done.stderr.startswith("qpu: 'no-such-command': No such file or directory")


def test_the_sandbox_of_a_shell_is_the_default_in_it(site: Site) -> None:
    """`qpu sandbox status` needs no --dir there; `qpu` is on PATH."""
    done = site.qpu("shell", "env", "-C", "/", "qpu", "sandbox", "status", "--json")
    assert json.loads(done.stdout)["directory"] == str(site.box.directory)


@pytest.mark.parametrize("export", ["ALL", "NONE", "HOME"])
def test_jobs_and_their_steps_find_it(site: Site, export: str) -> None:
    """Whatever sbatch exports, SLURM_CONF stripped or not."""
    wrapped = shlex.quote(WHO)
    job = site.submit(f"{WHO}\nsrun sh -c {wrapped}", f"--export={export}", "--output=said")
    site.wait_for(job)
    assert (site.work / "said").read_text().splitlines() == [
        who(site),
        who(site),
    ]


def test_a_job_keeps_the_configuration_that_its_user_chose(site: Site) -> None:
    """The sandbox's is a default."""
    job = site.submit('echo "$QPU_CONFIG"', "--export=ALL,QPU_CONFIG=/my.json", "--output=said")
    site.wait_for(job)
    assert (site.work / "said").read_text() == "/my.json\n"


def test_a_sandbox_from_the_shell_of_another(make_site: Callable[..., Site]) -> None:
    """The inner one's commands reach the inner one; the outer is not disturbed."""
    outer = make_site("outer", nodes=1)
    inner = outer.box.directory.parent / "inner"
    qpu = [*QPU, "up", "--dir", str(inner), "--nodes", "3"]
    done = outer.qpu("shell", "--", *qpu)
    assert done.returncode == 0, done.stderr
    try:
        argv = ("shell", "--", *QPU, "shell", "--dir", str(inner), "sh", "-c", WHO)
        assert outer.qpu(*argv).stdout.startswith("3 3 ")
        assert outer.qpu("shell", "sh", "-c", WHO).stdout.strip() == who(outer, nodes=1)
    finally:
        run(*QPU, "down", "--dir", str(inner))


def test_no_proxy_is_added_to(site: Site) -> None:
    """What the user had set stays."""
    variables = site.box.environment({"PATH": "/bin", "no_proxy": "a.example,.b.example"})
    assert variables["no_proxy"] == "a.example,.b.example,127.0.0.1"
    assert variables["NO_PROXY"] == "127.0.0.1"
    assert site.box.environment(variables) == variables


def test_jobs_start_within_a_second(site: Site) -> None:
    """By Slurm's own clock, also for jobs that ask for a QPU."""
    for options in ([], ["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]):
        job = site.submit("true", *options)
        site.wait_for(job)
        times = site.show(job)
        submitted, started = (
            datetime.fromisoformat(times[name]) for name in ("SubmitTime", "StartTime")
        )
        assert (started - submitted).total_seconds() <= 1


@pytest.mark.usefixtures("in_sandbox")
def test_the_site_policy_is_what_slurm_offers() -> None:
    """Every QPU of qrmi_config.json is in the policy, and Slurm accepts the options."""
    policy = load_site_policy()
    assert set(policy.qpus) == set(load_qpus()) == {"ibm_fez", "FRESNEL"}
    for name in policy.qpus:
        request = QPURequest(qpu=name)
        options = qpu_options(request, check_offered(request, policy))
        assert options == [f"--gres=qpu:{name}:1", f"--licenses=qpu_{name}:1"]
        assert run("srun", *options, "true").returncode == 0


def test_a_licence_excludes_across_nodes(site: Site) -> None:
    """Two jobs want one QPU, each on a node of its own: the second waits for the first."""
    options = ["--gres=qpu:FRESNEL:1", "--licenses=qpu_FRESNEL:1"]
    first = site.submit("while [ ! -e go ]; do sleep 0.1; done", *options, "--nodelist=n1")
    site.wait_for(first, "RUNNING")
    second = site.submit("true", *options, "--nodelist=n2")
    wait(lambda: site.show(second)["Reason"] == "Licenses", "the second job to wait")
    (site.work / "go").touch()
    site.wait_for(second)
    held = gres_of_job(site.slurm("scontrol", "show", "job", str(second)))
    assert held == {"state": "COMPLETED", "gres": "qpu:FRESNEL:1", "licences": "qpu_FRESNEL:1"}


def test_a_qpu_that_is_not_there_is_refused_at_once(site: Site) -> None:
    """By Slurm itself."""
    environ = os.environ | site.box.environment()
    done = run("sbatch", "--gres=qpu:none:1", "--wrap=true", environ=environ)
    assert done.returncode == 1
    assert "Requested node configuration is not available" in done.stderr


def test_nothing_listens_but_on_the_loopback_interface(site: Site) -> None:
    """Neither the daemons nor the clients that wait for a job.

    Where the host's name resolves to another address, Slurm can but listen on all of them.
    """
    site.submit("srun sh -c 'touch started; sleep 100'")
    wait((site.work / "started").exists, "the step to start")
    members = [psutil.Process(pid) for pid in site.pids().values()]
    members += [child for process in members for child in process.children(recursive=True)]
    members += [process for process in psutil.process_iter() if _is_srun_of(process, site)]
    listening = [
        connection.laddr.ip
        for process in members
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


def test_the_systems_own_slurm_configuration_is_never_opened(
    make_site: Callable[..., Site],
) -> None:
    """The kernel reports every file that is opened in /etc/slurm: none, from up to down."""
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
        assert watch.events() > 0, "the watch sees what happens"
