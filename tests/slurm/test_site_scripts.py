"""The site's Prolog, TaskProlog and Epilog on a real Slurm, with jobs of several users.

Root runs the cluster, as at a site. The users have no credentials and no qrmi_config.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from changing_files import files_below, read_if_there
from job_times import start_again
from other_users import User, python_for_all, temporary_user
from site_scripts import QPU_OPTIONS, ScriptedSite
from waiting import wait_until

from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.slurm_conf import add_to_slurm_conf, take_back
from qrmi_workflows.site.install import SiteScripts

pytestmark = [pytest.mark.slurm, pytest.mark.root]

BOTH = (
    f"{QPU_OPTIONS[0]},qpu:ibm_kyiv:1",
    f"{QPU_OPTIONS[1]},qpu_ibm_kyiv:1",
)
BELL = Path(__file__).parents[2] / "examples/bell/bell.json"
EMULATOR = """
[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.ibm_kyiv]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.FRESNEL]
type = "pasqal-cloud"
simulator = "null"
"""
# A program for QRMI's contract alone, which knows nothing of this package.
PLAIN = """\
from qrmi.primitives import QRMIService

for resource in QRMIService().resources():
    print("plain", resource.resource_id(), resource.status().status)
"""


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def ada(open_folder: Path) -> Iterator[User]:
    """A user."""
    with temporary_user(f"ada{os.getpid()}", open_folder) as user:
        yield user


@pytest.fixture(scope="module")
def eve(open_folder: Path) -> Iterator[User]:
    """Another user, who is curious."""
    with temporary_user(f"eve{os.getpid()}", open_folder) as user:
        yield user


@pytest.fixture(scope="module")
def shared(open_folder: Path, ada: User) -> Iterator[ScriptedSite]:
    """The cluster."""
    work = open_folder / "work"
    work.mkdir()
    work.chmod(0o1777)
    (open_folder / "emulator.toml").write_text(EMULATOR)
    shutil.copy(BELL, work)
    (work / "plain.py").write_text(PLAIN)
    box = Sandbox(open_folder / "box")
    box.up(config=open_folder / "emulator.toml", site_scripts=True)
    try:
        yield ScriptedSite(box, work, python_for_all(ada, open_folder))
    finally:
        box.down(grace=0)


@pytest.fixture
def site(shared: ScriptedSite) -> Iterator[ScriptedSite]:
    """The cluster; at the end of each test, no session is open and no node is drained."""
    yield shared
    shared.slurm("scancel", "--quiet", "--signal=KILL", "--partition=main")
    wait_until(lambda: shared.slurm("squeue", "--noheader") == "", "all jobs to end")
    wait_until(lambda: shared.sessions()["open"] == 0, "all sessions to be closed", 20)
    wait_until(lambda: shared.drained_nodes() == [], "all nodes to be up")
    assert list(shared.state.glob("leases/open/*")) == []


def test_a_job_of_a_user_without_credentials_runs_tasks(site: ScriptedSite, ada: User) -> None:
    qpu = f"{site.python} -m qrmi_workflows"
    script = f"""
    set -e
    cd {ada.home}
    {qpu} run {site.work}/bell.json -o result.json
    {site.python} {site.work}/plain.py
    env | grep -c QRMI_JOB_ACQUISITION_TOKEN
    """
    job = site.submit(script, *QPU_OPTIONS, user=ada)
    site.await_state(job, "COMPLETED", "FAILED")
    site.await_epilog(job)

    assert site.output(job).splitlines()[-1] == "1"
    assert "plain ibm_fez" in site.output(job)
    assert '"qpu": "ibm_fez"' in (ada.home / "result.json").read_text()
    (record,) = site.records(job)
    assert (record["user"], record["tasks"], record["reaped"]) == (ada.name, 1, False)
    assert record["busy"] > 0


def test_several_nodes_and_job_steps_share_one_session(site: ScriptedSite, ada: User) -> None:
    before = site.sessions()["opened"]
    show = "printenv ibm_fez_QRMI_JOB_ACQUISITION_TOKEN"
    script = f"{show}; srun --ntasks=2 --ntasks-per-node=1 {show}; echo done"

    job = site.submit(script, "--nodes=2", *QPU_OPTIONS)
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    *tokens, end = site.output(job).split()
    assert end == "done"
    assert len(tokens) == 3
    assert len(set(tokens)) == 1
    assert site.sessions()["opened"] == before + 1
    assert len(site.records(job)) == 1


def test_a_job_holds_several_qpus_or_none(site: ScriptedSite) -> None:
    before = site.sessions()["opened"]
    script = """
    printenv QRMI_JOB_QPU_RESOURCES
    env | grep -c QRMI_JOB_ACQUISITION_TOKEN
    """
    job = site.submit(script, *BOTH)
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    assert site.output(job).split() == ["ibm_fez,ibm_kyiv", "2"]
    assert site.sessions() == {**site.sessions(), "opened": before + 2, "open": 0}
    assert sorted(record["qpu"] for record in site.records(job)) == ["ibm_fez", "ibm_kyiv"]

    fault = {"kind": "status", "status": 403, "route": "POST */sessions", "count": 1}
    site.control.ask("POST", "/faults", fault)
    try:
        output, _ = reasons(site, site.submit("echo ran", *BOTH))
    finally:
        site.control.ask("DELETE", "/faults")
    assert re.match(r"qpu: QPU 'ibm_(fez|kyiv)' could not be acquired for this job: ", output)
    assert site.sessions() == {**site.sessions(), "opened": before + 3, "open": 0}


@pytest.mark.parametrize(
    "argv",
    [("srun", "--nodes=2"), ("salloc", "--nodes=2")],
    ids=["srun", "salloc"],
)
def test_a_job_without_a_batch_script(site: ScriptedSite, argv: tuple[str, ...]) -> None:
    """QRMI's SPANK plugin acquires only for batch scripts."""
    before = site.sessions()["opened"]
    show = ("printenv", "ibm_fez_QRMI_JOB_ACQUISITION_TOKEN")
    inner = ("srun", *show) if argv[0] == "salloc" else show

    tokens = site.slurm(*argv, *QPU_OPTIONS, *inner).split()

    assert len(tokens) == 2
    assert len(set(tokens)) == 1
    assert site.sessions()["opened"] == before + 1


def test_a_job_without_a_qpu_is_left_alone(site: ScriptedSite, ada: User) -> None:
    job = site.submit("env", user=ada)
    site.await_state(job, "COMPLETED")
    assert "QRMI" not in site.output(job)
    assert not site.folder(job).exists()


def start_and_wait(site: ScriptedSite, *options: str, user: User | None = None) -> int:
    """Start a job that holds its QPU until it is ended."""
    job = site.submit("echo started $$; exec sleep 600", *QPU_OPTIONS, *options, user=user)
    wait_until(lambda: "\n" in site.output(job), "the job to start")
    assert site.sessions()["open"] == 1
    return job


def script_of(site: ScriptedSite, job: int) -> psutil.Process:
    """Return the process of a job's batch script, which prints its id."""
    return psutil.Process(int(site.output(job).split()[-1]))


def kill_step_daemon(site: ScriptedSite, job: int) -> None:
    """Kill the slurmstepd of a job's batch script; another sandbox may have a job of this id."""
    daemon = script_of(site, job).parent()
    assert daemon is not None
    assert f"slurmstepd: [{job}.batch]" in " ".join(daemon.cmdline())
    daemon.kill()


@pytest.mark.parametrize("how", ["scancel", "scancel --signal=KILL", "slurmstepd", "script"])
def test_the_session_is_closed_however_the_job_ends(
    site: ScriptedSite, ada: User, how: str
) -> None:
    job = start_and_wait(site, "--no-requeue", user=ada)
    if how == "slurmstepd":
        kill_step_daemon(site, job)
        site.slurm("scancel", "--quiet", str(job))
    elif how == "script":  # as the kernel does when memory runs out
        script_of(site, job).kill()
    else:
        site.slurm(*how.split(), str(job))
    site.await_epilog(job)

    assert site.sessions()["open"] == 0
    (record,) = site.records(job)
    assert record["released"]


def kill_slurmd(site: ScriptedSite) -> None:
    """Kill the slurmd of both nodes, and start them again."""
    daemons = {each.name: each.pid for each in site.box.status().daemons}
    for name in ("slurmd-n1", "slurmd-n2"):
        os.kill(daemons[name], signal.SIGKILL)
    wait_until(lambda: len(site.box.status().dead) == 2, "both slurmd to end")
    site.box.up()


def test_slurmd_is_killed_while_the_job_runs(site: ScriptedSite, ada: User) -> None:
    job = start_and_wait(site, "--no-requeue", user=ada)
    kill_slurmd(site)
    site.slurm("scancel", "--quiet", str(job))
    site.await_epilog(job)
    assert site.sessions()["open"] == 0


@pytest.mark.slow
def test_slurmd_is_killed_in_the_prolog(site: ScriptedSite, ada: User) -> None:
    before = site.sessions()["opened"]
    fault = {"kind": "delay", "seconds": 5, "route": "POST */sessions", "when": "after"}
    site.control.ask("POST", "/faults", fault)
    try:
        job = site.submit("true", "--no-requeue", *QPU_OPTIONS, user=ada)
        wait_until(lambda: site.sessions()["opened"] == before + 1, "the session")
        kill_slurmd(site)
    finally:
        site.control.ask("DELETE", "/faults")
    site.slurm("scancel", "--quiet", str(job))
    ended = ("CANCELLED", "FAILED", "COMPLETED", "NODE_FAIL")
    site.await_state(job, *ended, seconds=120)
    # Slurm may have forgotten the Prolog, and then runs no Epilog for it.
    wait_until(
        lambda: site.reap("--all").returncode == 0 and site.sessions()["open"] == 0,
        "the session to be closed",
        120,
    )


@pytest.mark.slow
def test_the_session_is_closed_at_the_time_limit(site: ScriptedSite, ada: User) -> None:
    job = site.submit("sleep 600", "--time=1", *QPU_OPTIONS, user=ada)
    site.await_state(job, "TIMEOUT", seconds=150)
    site.await_epilog(job)
    assert site.sessions()["open"] == 0


def test_a_requeued_job_gets_a_session_of_its_own(site: ScriptedSite) -> None:
    before = site.sessions()["opened"]
    script = 'echo "run ${SLURM_RESTART_COUNT:-0}"; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job = site.submit(script, "--requeue", "--open-mode=append", *QPU_OPTIONS)
    site.await_output(job, "run 0")

    site.slurm("scontrol", "requeue", str(job))
    site.await_epilog(job)
    start_again(job, site.environ)
    site.await_output(job, "run 1")
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    assert site.sessions()["opened"] == before + 2
    assert [record["owner"]["restart"] for record in site.records(job)] == [0, 1]


def reasons(site: ScriptedSite, job: int) -> tuple[str, str]:
    """Return why a job failed: in its output, and in its record."""
    site.await_state(job, "FAILED")
    shown = site.slurm(
        "squeue", "--noheader", "--states=all", f"--jobs={job}", "--Format=admin_comment:"
    )
    return site.output(job), shown


@pytest.fixture
def policy(site: ScriptedSite) -> Iterator[Path]:
    """The site policy, which a test changes."""
    path = site.box.directory / "site.toml"
    text = path.read_text()
    yield path
    path.write_text(text)


def test_a_user_who_may_not_use_the_qpu_is_told_so(
    site: ScriptedSite, ada: User, eve: User, policy: Path
) -> None:
    limits = f'users = ["{ada.name}"]\npartition = "main"\n'
    policy.write_text(
        policy.read_text().replace('[qpus."ibm_fez"]\n', f'[qpus."ibm_fez"]\n{limits}')
    )
    before = site.sessions()["opened"]

    output, shown = reasons(site, site.submit("echo ran", *QPU_OPTIONS, user=eve))
    assert f"qpu: QPU 'ibm_fez': user '{eve.name}' may not use it" in output
    assert f"must be one of: {ada.name}" in shown
    assert "ran" not in output
    assert site.sessions()["opened"] == before

    job = site.submit("echo ran", *QPU_OPTIONS, user=ada)
    site.await_state(job, "COMPLETED")


def test_a_policy_that_cannot_be_read_fails_jobs_with_a_qpu_alone(
    site: ScriptedSite, ada: User, policy: Path
) -> None:
    held = start_and_wait(site, user=ada)
    text, before = policy.read_text(), site.sessions()["opened"]
    policy.write_text(text.replace("licence =", "licence"))

    plain = site.submit("echo ran", user=ada)
    site.await_state(plain, "COMPLETED")
    site.slurm("scancel", str(held))
    site.await_epilog(held)
    assert site.sessions()["open"] == 0
    output, shown = reasons(site, site.submit("echo ran", *QPU_OPTIONS, user=ada))

    assert "qpu: the site policy, which says what a job with a QPU needs, cannot be read" in output
    assert f"{policy}: not valid TOML" in shown
    assert "ran" not in output
    assert site.sessions()["opened"] == before


def test_a_job_that_cannot_be_told_is_cancelled(site: ScriptedSite, ada: User) -> None:
    """As where the disk of the node is full."""
    jobs = site.state / "jobs"
    kept = jobs.rename(site.state / "kept")
    jobs.write_text("not a folder")
    try:
        job = site.submit("echo ran", *QPU_OPTIONS, user=ada)
        site.await_state(job, "CANCELLED")
        wait_until(lambda: f"{job} " not in site.slurm("squeue", "--noheader"), "its end")
    finally:
        jobs.unlink()
        kept.rename(jobs)
    assert "ran" not in site.output(job)
    form = "--Format=admin_comment:"
    shown = site.slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", form)
    assert f"qpu: [Errno 17] File exists: '{jobs}'" in shown


def test_the_record_is_among_those_of_the_jobs_user(
    site: ScriptedSite, ada: User, policy: Path
) -> None:
    folder = site.work / "records"
    folder.mkdir()
    folder.chmod(0o1777)
    policy.write_text(policy.read_text().replace("[site]\n", f'[site]\nrecords = "{folder}"\n'))

    job = site.submit("true", *QPU_OPTIONS, user=ada)
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    (file,) = (folder / ada.name).iterdir()
    assert json.loads(file.read_text())["user"] == ada.name
    # The user, who may have leases of their own later, can write there too.
    assert (folder / ada.name).owner() == ada.name
    assert file.owner() == "root"


def test_a_qpu_that_the_site_does_not_define_fails_the_job(site: ScriptedSite) -> None:
    config = site.box.directory / "emulator" / "qrmi_config.json"
    text = config.read_text()
    config.write_text(text.replace('"ibm_fez"', '"ibm_old"'))
    try:
        output, shown = reasons(site, site.submit("echo ran", *QPU_OPTIONS))
        done = site.run("srun", *QPU_OPTIONS, "echo", "ran")
    finally:
        config.write_text(text)
    assert output.startswith("qpu: QPU 'ibm_fez' was granted to this job, but the site does not")
    assert "qrmi_config.json has no such QPU" in shown
    assert done.returncode != 0
    assert done.stdout == output.splitlines()[0] + "\n"


@pytest.mark.parametrize("status", [403, 401])
def test_a_vendor_that_refuses_fails_the_job(site: ScriptedSite, status: int) -> None:
    fault = {"kind": "status", "status": status, "route": "POST */sessions"}
    site.control.ask("POST", "/faults", fault)
    try:
        output, shown = reasons(site, site.submit("echo ran", *QPU_OPTIONS))
    finally:
        site.control.ask("DELETE", "/faults")
    assert output.startswith("qpu: QPU 'ibm_fez' could not be acquired for this job: ")
    assert "could not be acquired" in shown


@pytest.mark.slow
def test_a_silent_vendor_fails_the_job_and_its_late_session_is_closed(site: ScriptedSite) -> None:
    before = site.sessions()["opened"]
    fault = {"kind": "delay", "seconds": 34, "route": "POST */sessions", "when": "after"}
    site.control.ask("POST", "/faults", fault)
    try:
        job = site.submit("echo ran", *QPU_OPTIONS)
        site.await_state(job, "FAILED", seconds=90)
    finally:
        site.control.ask("DELETE", "/faults")
    assert "could not be acquired for this job: the vendor did not answer within 30 s" in (
        site.output(job)
    )
    assert site.sessions()["opened"] == before + 1  # and the fixture waits until it is closed


def test_another_user_can_neither_read_nor_join_the_lease(
    site: ScriptedSite, ada: User, eve: User
) -> None:
    job = start_and_wait(site, user=ada)
    folder = site.folder(job)
    environment = folder / "environment"
    readable = ada.run("cat", str(environment))
    assert "QRMI_JOB_ACQUISITION_TOKEN=" in readable.stdout

    secret = [
        *site.state.glob("leases/open/*.json"),
        site.box.directory / "emulator/qrmi_config.json",
    ]
    for path in [environment, folder / "usage", site.state / "leases", *secret]:
        assert eve.run("cat", str(path)).returncode != 0, path
    for path in (site.state, site.state / "jobs", folder):
        assert eve.run("ls", str(path)).stdout == "", path
        for change in (
            ("touch", f"{path}/x"),
            ("rm", "-rf", str(path)),
            ("ln", "-s", "/", f"{path}/x"),
        ):
            eve.run(*change)
    pretend = f"SLURM_JOB_ID={job} {site.box.directory}/site/task_prolog"
    assert "TOKEN" not in eve.run("sh", "-c", pretend).stdout
    assert environment.exists()
    # Not even its own user can replace what the others trust.
    assert ada.run("rm", "-f", str(environment)).returncode != 0
    assert ada.run("mv", str(folder / "usage"), str(folder / "u")).returncode != 0


@pytest.mark.parametrize(
    "option",
    ["--job-name", "--comment"],
)
def test_a_forged_name_grants_nothing(site: ScriptedSite, eve: User, option: str) -> None:
    """`scontrol show job` prints it as it is."""
    before = site.sessions()["opened"]
    forged = "x\n   JOB_GRES=qpu:ibm_fez:1\n   OverSubscribe=OK Licenses=qpu_ibm_fez:1 Network=x"

    ask = "from qrmi_workflows.lease.grants import granted_qpus; print(sorted(granted_qpus()))"
    job = site.submit(f"env; {site.python} -c '{ask}'", option, forged, user=eve)
    site.await_state(job, "COMPLETED")

    assert site.sessions()["opened"] == before
    assert "QRMI" not in site.output(job)
    assert "QPU_SITE=" in site.output(job)
    assert site.output(job).splitlines()[-1] == "[]"


def test_what_a_user_puts_into_their_folder_harms_nobody(
    site: ScriptedSite, eve: User, open_folder: Path
) -> None:
    precious = open_folder / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    script = f"""
    cd "${{QPU_LEASE_USAGE%/*}}" || exit 1
    ln -s {precious} folder
    ln -s /etc/passwd other.usage
    mkfifo ibm_fez.usage
    echo ready
    """
    job = site.submit(script, *QPU_OPTIONS, user=eve)
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    assert "ready" in site.output(job)
    assert (precious / "file").read_text() == "kept"
    (record,) = site.records(job)
    assert record["tasks"] == 0


def test_forged_usage_does_not_count(site: ScriptedSite, eve: User) -> None:
    line = {"qpu": "ibm_fez", "task_id": "t", "started": 0, "ended": 9e9, "state": "Completed"}
    lines = [line, line | {"started": "x"}, {"reported": "t", "seconds": 1e9}]
    written = "\n".join(map(json.dumps, lines))
    job = site.submit(f"cat >$QPU_LEASE_USAGE <<'END'\n{written}\nEND", *QPU_OPTIONS, user=eve)
    site.await_state(job, "COMPLETED")
    site.await_epilog(job)

    (record,) = site.records(job)
    assert (record["tasks"], record["reported"]) == (0, None)


def test_jobs_of_a_user_share_the_session_of_a_stage(site: ScriptedSite, ada: User) -> None:
    """The Prolog acquires for the keeper's job alone; the other jobs hold no QPU."""
    before = site.sessions()["opened"]
    environ = {key: value for key, value in site.box.environment().items() if key != "QPU_CONFIG"}
    environ |= {"QPU_STATE": f"{ada.home}/state", "QPU_STAGE": "vqe"}
    qpu = f"{site.python} -m qrmi_workflows"
    member = ada.home / "member.sh"
    member.write_text(f"#!/bin/sh\nexec {qpu} run {site.work}/bell.json -o $SLURM_JOB_ID.json\n")
    member.chmod(0o755)
    submit = f"sbatch --parsable --output=%j.out $({qpu} stage options vqe) {member}"

    opened = ada.run("sh", "-c", f"{qpu} stage open vqe --qpu ibm_fez && {submit}", **environ)
    assert opened.returncode == 0, opened.stderr
    jobs = [int(opened.stdout.split()[-1])]
    site.await_state(jobs[0], "COMPLETED", "FAILED", "CANCELLED")
    later = ada.run("sh", "-c", submit, **environ)  # the stage is ready
    jobs.append(int(later.stdout.split()[-1]))
    site.await_state(jobs[1], "COMPLETED", "FAILED", "CANCELLED")

    for job in jobs:
        assert (ada.home / f"{job}.json").exists(), (ada.home / f"{job}.out").read_text()
    assert site.sessions()["opened"] == before + 1
    closed = ada.run("sh", "-c", f"{qpu} stage close vqe", **environ)
    assert closed.returncode == 0, closed.stderr
    wait_until(lambda: site.sessions()["open"] == 0, "the end of the stage")


def test_secrets_are_nowhere_else(site: ScriptedSite, ada: User) -> None:
    job = start_and_wait(site, user=ada)
    config = json.loads((site.box.directory / "emulator/qrmi_config.json").read_text())
    settings = [each["environment"] for each in config["resources"]]
    secrets = {
        value.encode()
        for each in settings
        for key, value in each.items()
        if not key.endswith(("ENDPOINT", "URL"))
    }
    (opened,) = site.state.glob("leases/open/*.json")
    secrets.add(json.loads(opened.read_text())["token"].encode())

    def has_secret(data: bytes) -> bool:
        return any(secret in data for secret in secrets)

    allowed = {opened, site.folder(job) / "environment"}
    emulator = site.box.directory / "emulator"
    files = [
        path
        for path in files_below(site.box.directory, site.work)
        if emulator not in path.parents and path not in allowed
    ]
    assert files
    assert [path for path in files if has_secret(read_if_there(path))] == []
    shown = site.slurm("scontrol", "show", "job", "--details", str(job))
    assert not has_secret(shown.encode())
    lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert not has_secret(lines)
    assert allowed == {path for path in allowed if has_secret(path.read_bytes())}


@pytest.fixture
def no_release(site: ScriptedSite) -> Iterator[None]:
    """The vendor does not release any session, until the fixture's end."""
    for method in ("PATCH", "DELETE"):
        fault = {"kind": "status", "status": 503, "route": f"{method} */sessions/*"}
        site.control.ask("POST", "/faults", fault)
    yield
    site.control.ask("DELETE", "/faults")


def test_what_the_epilog_could_not_release_is_reaped(
    site: ScriptedSite, ada: User, no_release: None
) -> None:
    held = start_and_wait(site, "--licenses=qpu_ibm_fez:1", user=ada)
    site.slurm("scancel", str(held))
    site.await_state(held, "CANCELLED")
    wait_until(lambda: "COMPLETING" not in site.slurm("squeue", "--noheader"), "the Epilog to end")
    assert site.sessions()["open"] == 1
    done = site.reap("--all", f"--states={ada.home}/state")
    assert done.returncode == 1
    assert f"{ada.name}, job {held}: " in done.stdout
    assert "503" in done.stdout

    site.control.ask("DELETE", "/faults")
    done = site.reap("--job", str(held))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("of ibm_fez: released\n")
    (record,) = site.records(held)
    assert (record["reaped"], record["user"]) == (True, ada.name)
    assert not site.folder(held).exists()


def test_the_lease_of_a_live_job_is_not_reaped(site: ScriptedSite, ada: User) -> None:
    job = start_and_wait(site, user=ada)
    done = site.reap("--all", f"--states={ada.home}/state")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert site.sessions()["open"] == 1
    assert site.folder(job).exists()


@pytest.mark.parametrize("job", ["..", "1/../2", "x"])
def test_reap_refuses_what_is_no_job(site: ScriptedSite, job: str) -> None:
    done = site.reap("--job", job)
    assert done.returncode == 2
    assert "must be a number" in done.stderr


def test_root_reaps_the_users_own_leases_with_their_rights(
    site: ScriptedSite, ada: User, eve: User
) -> None:
    config = shutil.copy(site.box.directory / "emulator" / "qrmi_config.json", ada.home / "c.json")
    shutil.chown(config, ada.name)
    own = {"QPU_CONFIG": str(config), "QPU_STATE": f"{ada.home}/state"}
    dies = f"{site.python} -m qrmi_workflows lease exec --qpu ibm_fez -- sh -c"
    ada.run("sh", "-c", f"{dies} 'kill -KILL $PPID; sleep 1'", **own)
    (lease,) = (ada.home / "state/leases/open").glob("*.json")
    assert site.sessions()["open"] == 1
    # Whatever the other user puts there, root does not read it for her.
    trap = eve.home / "state/leases/open"
    trap.mkdir(parents=True)
    (trap / "link.json").symlink_to(lease)
    os.mkfifo(trap / "x.usage")
    for path in (trap, *trap.parents[:2]):
        shutil.chown(path, eve.name)
    done = site.reap("--all", f"--states={eve.home}/state")
    assert (done.returncode, done.stdout) == (0, "")
    assert site.sessions()["open"] == 1

    done = site.reap("--all", f"--states={ada.home.parent}/*/state", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["user"], row["qpu"], row["released"]) == (ada.name, "ibm_fez", True)
    assert not lease.exists()
    shutil.rmtree(eve.home / "state")


def test_the_lines_that_are_installed_work(site: ScriptedSite, ada: User) -> None:
    """They are added to the slurm.conf of a site with scripts of its own, and taken back."""
    folder = site.box.directory
    conf = folder / "etc" / "slurm.conf"
    scripted = conf.read_text()
    plain = "".join(
        line.replace(f"{folder}/site/", f"{folder}/etc/")
        for line in scripted.splitlines(keepends=True)
        if not line.startswith("Prolog")
    )
    policy = load_site_policy(folder / "site.toml")
    installed = folder / "installed"
    installed.mkdir()
    installed.chmod(0o711)
    places = {name: str(installed / name) for name in ("prolog", "task_prolog", "epilog")}
    changed = add_to_slurm_conf(plain, policy.qpus.values(), places)
    scripts = SiteScripts(
        state=site.state,
        config=folder / "emulator" / "qrmi_config.json",
        policy=folder / "site.toml",
        path=str(folder / "bin"),
    )
    for name, text in scripts.render(changed.earlier).items():
        (installed / name).write_text(text)
        (installed / name).chmod(0o755)
    conf.write_text(changed.text)
    try:
        site.slurm("scontrol", "reconfigure")
        shown = site.slurm("scontrol", "show", "config")
        assert f"= {installed}/prolog" in shown
        before = site.sessions()["opened"]
        job = site.submit("printenv QPU_SANDBOX QRMI_JOB_ID", *QPU_OPTIONS, user=ada)
        site.await_state(job, "COMPLETED")
        site.await_epilog(job)
        assert site.output(job).split() == [str(folder), str(job)]  # of both TaskPrologs
        assert site.sessions()["opened"] == before + 1
        assert take_back(changed.text) == plain
    finally:
        conf.write_text(scripted)
        site.slurm("scontrol", "reconfigure")
