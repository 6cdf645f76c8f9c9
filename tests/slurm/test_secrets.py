"""Credentials are only in qrmi_config.json, and acquisition tokens only in the file of the lease.

The jobs of an open stage adopt its lease by a file of its own, which has both.

Everything logs as much as it can. The search covers the user's files (state, work, cache, engines'
logs), Slurm's (logs, spool, saved state), the arguments of all processes, and what `scontrol`
shows of each job.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import REFUSED, Vault, open_vault
from waiting import wait_until

pytestmark = pytest.mark.slurm

BELL = Path(__file__).parents[2] / "examples" / "bell"
FAILS = "OPENQASM 3.0; bit[1] c; array[int[8], 2] nonsense; c[0] = measure $0;"
OPEN = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from qrmi_workflows import open_lease
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.client.resource import QRMIResource
{body}
"""

ENGINES = {
    "snakemake": (
        *("-m", "snakemake", "--executor", "slurm-qpu", "--jobs", "1", "--forceall"),
        "--slurm-qpu-keep-successful-logs",
        *("--verbose", "--printshellcmds", "--show-failed-logs"),
    ),
    "parsl": ("bell.py",),
}
LOGS = {"snakemake": (".snakemake/log", ".snakemake/slurm_logs"), "parsl": ("runinfo",)}


@pytest.fixture(scope="module")
def shared_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    with open_vault(tmp_path_factory.mktemp("vault")) as made:
        shutil.copytree(BELL, made.folder, dirs_exist_ok=True)
        payload = json.loads((BELL / "bell.json").read_text())
        payload["parameters"]["pubs"][0][0] = FAILS
        (made.folder / "fails.json").write_text(json.dumps(payload))
        yield made


@pytest.fixture
def vault(shared_vault: Vault) -> Iterator[Vault]:
    """The vault; fail if anything has leaked at the end of the test."""
    with shared_vault.watching():
        yield shared_vault
    shared_vault.control.ask("DELETE", "/faults")
    assert shared_vault.found() == {}


def test_the_search_finds_a_leak(shared_vault: Vault):
    secret, name = next(iter(shared_vault.secrets.items()))
    leak = shared_vault.folder / "leak"
    leak.write_text(f"the key is {secret}.")

    argv = ["sh", "-c", "read _; true", secret]  # `true`: sh might replace itself by the last one
    with shared_vault.watching(), subprocess.Popen(argv, stdin=subprocess.PIPE):
        begun = shared_vault.scans
        wait_until(lambda: shared_vault.scans >= begun + 2, "a scan from its beginning")

    assert shared_vault.found() == {str(leak): {name}, "argv": {name}}
    leak.unlink()
    shared_vault.seen_in_argv.clear()


def test_the_list_of_qpus(vault: Vault):
    done = vault.run("list", "qpu", "list")

    assert all(name in done.stdout for name in REFUSED)


@pytest.mark.parametrize("qpu", ["ibm_fez", "ibm_system"])
def test_a_task_that_succeeds(vault: Vault, qpu: str):
    done = vault.run(qpu, "qpu", "run", "bell.json", "-o", f"{qpu}.json", "--qpu", qpu)

    assert done.returncode == 0, done.stdout


def test_a_task_that_fails(vault: Vault):
    body = "with open_lease('ibm_aer') as lease: lease.run('fails.json')"

    output = vault.run("fails", sys.executable, "-c", OPEN.format(body=body)).stdout

    assert "Traceback" in output
    assert "failed at the vendor" in output


def test_a_command_under_a_lease(vault: Vault):
    argv = ("qpu", "lease", "exec", "--qpu", "ibm_fez,FRESNEL,felis,garnet_mock", "--", "true")

    assert vault.run("exec", *argv).returncode == 0


@pytest.mark.timeout(300)
def test_refused_credentials_in_a_traceback(vault: Vault):
    body = """
import traceback
for name in sys.argv[1:]:
    qpu = load_qpus()[name]
    resource = QRMIResource(name, qpu.type, qpu.environment, token="token-of-" + name)
    for call in (resource.target, lambda: resource.task_status("1"), resource.status):
        try:
            call()
        except Exception:
            traceback.print_exc()
"""
    vault.secrets |= {f"token-of-{name}": f"{name} token" for name in REFUSED}

    output = vault.run("refused", sys.executable, "-c", OPEN.format(body=body), *REFUSED).stdout

    assert output.count("AuthenticationError") + output.count("ResourceError") >= len(REFUSED)
    assert "Traceback" in output


@pytest.mark.parametrize(
    ("status", "route"),
    [(400, "POST */jobs"), (401, "POST */jobs"), (503, "POST */jobs"), (403, "POST */sessions")],
)
def test_a_vendor_that_echoes_the_credentials(vault: Vault, status: int, route: str):
    echo(vault, status, route)

    argv = ("qpu", "run", "bell.json", "-o", f"echo{status}.json", "--qpu", "ibm_fez")
    done = vault.run(f"echo-{status}", *argv)

    assert done.returncode == 1
    assert "sent: …" in done.stdout


def echo(vault: Vault, status: int, route: str) -> None:
    """Make the vendor answer with all credentials of ibm_fez."""
    sent = [secret for secret, name in vault.secrets.items() if name.startswith("ibm_fez QRMI")]
    body = json.dumps({"error": f"sent: {' '.join(sent)}"})
    fault = {"kind": "status", "status": status, "body": body, "route": route}
    vault.control.ask("POST", "/faults", fault)


def test_after_a_crash_only_the_file_of_the_lease_has_the_token(vault: Vault):
    argv = ["qpu", "run", "bell.json", "-o", "crash.json", "--qpu", "ibm_slow"]
    log = vault.folder / "crash.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            argv, cwd=vault.folder, env=vault.environ, stdout=file, stderr=file
        )
    wait_until(lambda: "\ntask " in log.read_text(), "a task")

    process.send_signal(signal.SIGKILL)
    process.wait()

    (lease,) = vault.open_leases
    assert vault.found() == {str(lease): {"ibm_slow acquisition token"}}
    assert {oct(path.stat().st_mode & 0o777) for path in (lease, vault.config)} == {"0o600"}
    assert vault.run("reap", "qpu", "reap", "--cancel-tasks").returncode == 0


def test_a_slurm_job(vault: Vault):
    body = "exec qpu lease exec --qpu ibm_fez -- qpu run bell.json -o job.json"
    grants = ("--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")

    done = vault.run("sbatch", "sbatch", "--wait", "--output=job.log", *grants, f"--wrap={body}")

    assert done.returncode == 0, (vault.folder / "job.log").read_text()
    assert "QRMI" not in (vault.folder / "job.log").read_text()


@pytest.mark.slow
def test_a_stage_with_its_keeper_and_a_budget(vault: Vault):
    """Its jobs adopt the lease by a file of the stage, which is private, and gone at its end."""
    vault.run("open", "qpu", "stage", "open", "vqe", "--qpu", "ibm_fez", "--budget", "9000 shots")
    options = vault.run("options", "qpu", "stage", "options", "vqe").stdout.splitlines()[-1].split()
    body = "exec qpu lease exec --stage vqe -- qpu run bell.json -o stage.json"

    argv = ("sbatch", "--wait", "--output=stage.out", *options, f"--wrap={body}")
    done = vault.run("stage-job", *argv)
    (lease,) = vault.open_leases
    (adopted,) = vault.folder.glob("state/stages/*/environment.json")
    found = vault.found()
    modes = {oct(path.stat().st_mode & 0o777) for path in (lease, adopted)}
    for command in ("stage show vqe", "budget show", "stage close vqe", "usage", "doctor"):
        vault.run(command.replace(" ", "-"), "qpu", *command.split())
    wait_until(lambda: not vault.open_leases, "the end of the stage")

    assert done.returncode == 0, (vault.folder / "stage.out").read_text()
    assert found.pop(str(lease)) == {"ibm_fez acquisition token"}
    assert list(found) == [str(adopted)]
    assert modes == {"0o600"}


@pytest.mark.slow
@pytest.mark.engines
@pytest.mark.parametrize("engine", ["snakemake", "parsl"])
@pytest.mark.parametrize("where", ["alone", "refused", "under another lease"])
def test_an_engines_step(vault: Vault, engine: str, where: str):
    if where == "refused":
        echo(vault, 400, "POST */jobs")
    lease = ("qpu", "lease", "exec", "--qpu", "FRESNEL", "--") if "lease" in where else ()

    done = vault.run(f"{engine}-{where}", *lease, sys.executable, *ENGINES[engine])

    wait_until(lambda: not vault.open_leases, "the end of Parsl's block")
    assert (done.returncode == 0) is (where != "refused"), done.stdout
    assert all((vault.folder / log).is_dir() for log in LOGS[engine])
