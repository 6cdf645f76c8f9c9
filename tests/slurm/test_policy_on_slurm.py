"""A site policy against a real Slurm: each kind of request, and what `qpu doctor` says of both."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import WAIT_SECONDS

from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.sandbox import Sandbox, render
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import Completed, require_success, run_command
from qrmi_workflows.schedulers.gres import gres_of_job
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.schedulers.slurm import Slurm

pytestmark = pytest.mark.slurm

QPU = (sys.executable, "-m", "qrmi_workflows")
ME = pwd.getpwuid(os.getuid()).pw_name

GRES = {None: "", "qpu:{qpu}": "qpu:ibm_fez:{n}", "quantum": "quantum:{n}"}
LICENCE = {None: "", "shared_{qpu}": "shared_ibm_fez:{n}"}
PARTITION = {
    None: "main",
    'partition = "quantum"': "quantum",
    'partitions = ["quantum", "debug"]': "quantum,debug",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A cluster with three units of everything: of a GRES with types, of one without, a licence.

    Its partitions quantum and debug have the first node alone.
    """
    config, gres = render.render_slurm_conf, render.render_gres_conf

    def render_slurm_conf(cluster: render.Cluster) -> str:
        text = config(cluster).replace("GresTypes=qpu", "GresTypes=qpu,quantum")
        text = re.sub(r"Licenses=\S+", r"\g<0>,shared_ibm_fez:3", text)
        first = re.sub(
            r"(NodeName=n1 .*Gres=)\S+", r"\1qpu:ibm_fez:3,qpu:FRESNEL:1,quantum:3", text
        )
        partitions = "".join(f"PartitionName={name} Nodes=n1\n" for name in ("quantum", "debug"))
        return re.sub(r"(NodeName=n2 .*Gres=)\S+", r"\1qpu:FRESNEL:1", first) + partitions

    def render_gres_conf(qpus: object) -> str:
        lines = gres(["FRESNEL"])
        lines += "NodeName=n1 Name=qpu Type=ibm_fez Count=3 Flags=CountOnly\n"
        return lines + "NodeName=n1 Name=quantum Count=3 Flags=CountOnly\n"

    box = Sandbox(tmp_path_factory.mktemp("policies"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "render_slurm_conf", render_slurm_conf)
        patch.setattr(render, "render_gres_conf", render_gres_conf)
        box.up()
        yield box
        box.down(grace=0)


@pytest.fixture
def policy(site: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write site.toml, and use it in this cluster."""
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))

    def write(*lines: str | None) -> Path:
        path = tmp_path / "site.toml"
        path.write_text("\n".join(["[qpus.ibm_fez]", *filter(None, lines), ""]))
        return path

    return write


def doctor(*arguments: str) -> Completed:
    """Run `qpu doctor`."""
    return run_command([*QPU, "doctor", *arguments], timeout=60)


def problems(check: str | None = None) -> list[str]:
    """Return what `qpu doctor` finds wrong."""
    found = json.loads(doctor("--json").stdout)
    return [
        f"{each['severity']} {each['check']}: {each['problem']} → {each['remedy']}"
        for each in found
        if each["severity"] != "ok" and check in (None, each["check"])
    ]


KINDS = [
    (gres, licence, partition, sharing)
    for gres, licence, partition, sharing in itertools.product(
        GRES, LICENCE, PARTITION, (None, "true", "false")
    )
    if gres or licence or sharing != "false"
]


def test_each_kind_of_request_is_what_scontrol_shows(policy):
    """Held until it is looked at; Slurm has checked that it can run."""
    ids: dict[str, tuple[str, str, str, int]] = {}
    for gres, licence, partition, sharing in KINDS:
        path = policy(
            gres and f'gres = "{gres}"',
            licence and f'licence = "{licence}"',
            partition,
            sharing and f"lanes = 3\nexclusive = {sharing}",
        )
        count = 3 if sharing == "false" else 1
        asked = QPURequest(qpu="ibm_fez", count=count)
        Slurm().check_offered(asked, load_site_policy(path))
        options = compile_request(asked, load_site_policy(path), Slurm())
        argv = ["sbatch", "--parsable", "--hold", "--output=/dev/null", *options, "--wrap=true"]
        job = require_success(run_command(argv)).stdout.strip()
        ids[job] = (GRES[gres], LICENCE[licence], PARTITION[partition], count)
    shown = require_success(run_command(["scontrol", "show", "job"])).stdout
    jobs = {job.split(" ")[0]: job for job in re.split(r"^JobId=", shown, flags=re.MULTILINE)}
    run_command(["scancel", *ids])

    assert len(ids) == len(KINDS)
    for job, (gres, licence, partition, count) in ids.items():
        held = gres_of_job(f"JobId={jobs[job]}")
        assert held["gres"] == gres.format(n=count)
        assert held["licences"] == licence.format(n=count)
        assert f"Partition={partition} " in jobs[job]


def test_a_job_has_as_many_lanes_of_a_shared_qpu_as_it_holds_units(policy, tmp_path):
    """Of three, it asks for two: by a GRES and a licence, which count the same."""
    policy('gres = "qpu:{qpu}"', 'licence = "shared_{qpu}"', "lanes = 3", "exclusive = false")
    asking = require_success(run_command([*QPU, "request", "ibm_fez", "--count", "2"])).stdout
    code = (
        "from qrmi_workflows.lease.shared import count_lanes; print(count_lanes('ibm_fez', None))"
    )
    job = f'exec {sys.executable} -c "{code}"'

    argv = ["sbatch", "--wait", f"--output={tmp_path}/lanes", *asking.split(), "--wrap", job]
    require_success(run_command(argv, timeout=WAIT_SECONDS))

    assert (tmp_path / "lanes").read_text() == "2\n"


def test_a_proposed_policy_is_valid_and_the_doctor_agrees_with_it(policy, tmp_path, monkeypatch):
    file = tmp_path / "proposed.toml"

    done = doctor("--write", str(file))

    assert done.returncode == 0, done.stderr
    found = load_site_policy(file)
    assert found.scheduler == "slurm"
    fez, fresnel = found.qpu("ibm_fez"), found.qpu("FRESNEL")
    assert (fez.gres, fez.gres_nodes, fez.licence) == ("qpu:ibm_fez", "n1", "qpu_ibm_fez")
    assert (fresnel.gres, fresnel.gres_nodes) == ("qpu:FRESNEL", "n[1-2]")
    assert fresnel.licence == "qpu_FRESNEL"
    assert (fez.partition, fez.exclusive, fez.kill_wait) == (None, None, 30)
    monkeypatch.setenv("QPU_SITE", str(file))
    assert problems() == []
    assert doctor("--write", str(file)).returncode == 2
    assert doctor("--write").stdout == file.read_text()


def test_the_doctor_exits_with_zero_one_or_two(policy):
    policy('licence = "qpu_{qpu}"')
    assert doctor("--quiet").stdout == "0 errors, 0 warnings\n"
    assert doctor().returncode == 0
    policy("lanes = 5")
    assert doctor().returncode == 1
    policy('licence = "absent"')
    done = doctor()
    assert done.returncode == 2
    assert done.stdout.endswith("1 error, 0 warnings\n")


MISTAKES = {
    'gres = "qpu:ibm_torino"': "no node of this Slurm has GRES 'qpu:ibm_torino'",
    'licence = "absent"': "this Slurm has no licence 'absent'",
    f'licence = "qpu_{{qpu}}"\npartition = "quantum"\nusers = ["{ME}x"]': f"user '{ME}",
    'licence = "qpu_{qpu}"\npartition = "quantum"\ngroups = ["no-such"]': "no-such",
    "lanes = 0": "lanes = 0: must be a positive integer",
    "license = 'a'": "unknown key 'license'",
    'licence = "l"\nlanes = 1\nexclusive = false': "exclusive = false, but the QPU has one lane",
    'licence = "l"\nusers = ["ada"]': "users without a partition",
}


@pytest.mark.parametrize("settings", MISTAKES)
def test_a_mistake_is_named_by_the_doctor_and_by_the_first_command(policy, settings):
    """Both with the line to correct."""
    path, message = policy(settings), MISTAKES[settings]
    line = re.compile(rf"{re.escape(str(path))}:[2-4]\b")

    (found, *_) = problems()
    done = run_command([*QPU, "request", "ibm_fez"])

    assert message in found
    assert line.search(found)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert line.search(done.stderr)


def test_an_unknown_account_or_partition_is_named_by_the_doctor(policy):
    """Without accounting, no command knows the accounts; sbatch refuses the partition."""
    path = policy('licence = "qpu_{qpu}"', 'partition = "absent"', 'accounts = ["chem"]')

    (partition,) = problems("partitions")
    (account,) = problems("access")

    assert "this Slurm has no partition 'absent'; it has: debug, main, quantum. → C" in partition
    assert f"{path}:3" in partition
    assert f"accounts = ['chem'] ({path}:4), but Slurm's accounting did not tell" in account


def test_a_gres_that_is_counted_per_node_is_a_warning(policy):
    policy('gres = "qpu:FRESNEL"')

    (found,) = problems("exclusion")
    assert "2 jobs can hold it at a time by GRES 'qpu:FRESNEL', which is counted per" in found


def test_more_than_slurm_has_is_refused_before_sbatch(policy):
    path = policy('licence = "qpu_{qpu}"', "lanes = 3", "exclusive = false")

    with pytest.raises(RequestError, match=r"this Slurm has 1 of licence 'qpu_ibm_fez'"):
        Slurm().check_offered(QPURequest(qpu="ibm_fez", count=2), load_site_policy(path))
    (found,) = problems("exclusion")
    assert "jobs can hold only 1 of its 3 lanes by licence 'qpu_ibm_fez'" in found


def test_what_slurm_itself_refuses_is_what_the_checks_refuse(policy):
    """The licence and the GRES that the checks name are unknown to sbatch, too."""
    for option in ("--licenses=absent:1", "--gres=qpu:ibm_torino:1", "--partition=absent"):
        done = run_command(["sbatch", "--output=/dev/null", option, "--wrap=true"])
        assert done.returncode != 0
