"""What Slurm's Prolog and Epilog are told, and what a job was granted; nothing of it is forged."""

import pytest
from fake_commands import FakeCommands

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.slurm_grants import grants_argv
from qrmi_workflows.schedulers.slurm_scripts import (
    ScriptJob,
    ask_granted,
    first_node,
    parse_all_job_times,
    parse_live_jobs,
    report_failure,
)

# Recorded from a Prolog of Slurm 22.05, without its paths.
PROLOG = {
    "SLURM_JOB_USER": "ada",
    "SLURM_JOBID": "3",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_GID": "1001",
    "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_JOB_RESTART_COUNT": "1",
    "SLURM_JOB_ID": "3",
    "SLURMD_NODENAME": "n1",
    "SLURM_CLUSTER_NAME": "sandbox",
    "SLURM_JOB_UID": "1001",
}
JOB = ScriptJob.from_environ(PROLOG)
FEZ = QPUPolicy(name="fez", gres="qpu:fez", licence="qpu_fez")
LICENSED = QPUPolicy(name="fez", licence="qpu_fez")


def row(*, gres="N/A"):
    """A row of squeue, as Slurm 22.05 prints it."""
    fields = ["3", "N/A", "1", "1", "1", "1:00:00", "qc", "qpu_fez:1", "N/A", "N/A", gres, "N/A"]
    return "\x1f".join(fields) + "\x1f\n"


def held(granted, policies, job):
    return granted.qpus(policies, job.plugin_qpus)


def test_the_environment_of_a_prolog_is_read():
    assert (
        ScriptJob(
            id="3",
            uid=1001,
            gid=1001,
            user="ada",
            account=None,
            cluster="sandbox",
            restart=1,
            node="n1",
            nodes="n[1-2]",
            licences=None,
            limit=None,
            plugin_qpus=frozenset(),
        )
        == JOB
    )


def test_later_versions_name_the_licences_and_the_time_limit():
    later = {
        "SLURM_JOB_LICENSES": "qpu_fez:1",
        "SLURM_JOB_START_TIME": "1000",
        "SLURM_JOB_END_TIME": "1060",
    }
    job = ScriptJob.from_environ(PROLOG | later)

    granted = ask_granted(job, [LICENSED], timeout=1.0)  # without a command

    assert held(granted, [LICENSED], job) == ["fez"]
    assert granted.limit == 60


@pytest.mark.parametrize("job_id", ["", "../3", "3/..", "3\n", "x", "٣"])
def test_a_job_id_that_is_no_number_is_no_job(job_id):
    assert ScriptJob.from_environ(PROLOG | {"SLURM_JOB_ID": job_id}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4,7],m1", "n1"),
        ("n[03,05]", "n03"),
        ("rack[1-2]-n1,x", "rack1-n1"),
        ("gw-a.site,n[1-2]", "gw-a.site"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(("node", "is_first"), [("n1", True), ("n2", False)])
def test_one_node_of_a_job_acquires(node, is_first):
    assert ScriptJob.from_environ(PROLOG | {"SLURMD_NODENAME": node}).is_on_first_node is is_first


def test_the_plugins_option_names_qpus():
    option = {"SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu": "fez, other"}
    assert ScriptJob.from_environ(PROLOG | option).plugin_qpus == {"fez", "other"}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    fake = FakeCommands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


def answer(commands, name, text):
    file = commands.folder / f"{name}.answer"
    file.write_text(text)
    commands.write(name, f"cat {file}")


def test_scontrol_is_asked_only_for_the_type_that_slurm_chose(commands):
    answer(commands, "squeue", row(gres="gres:qpu:1"))
    answer(commands, "scontrol", "JobId=3\n     JOB_GRES=qpu:fez:1\n")

    assert held(ask_granted(JOB, [FEZ], timeout=10.0), [FEZ], JOB) == ["fez"]
    assert commands.calls("squeue") == [" ".join(grants_argv(["3"])[1:])]

    answer(commands, "squeue", row(gres="gres:qpu:fez:1"))
    ask_granted(JOB, [FEZ], timeout=10.0)
    assert len(commands.calls("scontrol")) == 1


def test_a_forged_name_does_not_count_without_a_request(commands):
    answer(commands, "squeue", row())
    answer(commands, "scontrol", "JobId=3 JobName=x\n   JOB_GRES=qpu:fez:1\n   JOB_GRES=(null)\n")

    assert held(ask_granted(JOB, [FEZ], timeout=10.0), [FEZ], JOB) == []


def test_a_silent_scheduler_is_an_error(commands):
    commands.write("squeue", "exec sleep 60")
    with pytest.raises(SchedulerError, match="did not end within"):
        ask_granted(JOB, [FEZ], timeout=0.2)
    answer(commands, "squeue", "")
    with pytest.raises(SchedulerError, match="does not list job 3"):
        ask_granted(JOB, [FEZ], timeout=10.0)


def test_a_reason_is_one_short_line_of_the_jobs_record(commands):
    commands.write("scontrol", "")
    report_failure("3", "qpu: a\n  b " + "x" * 1000, timeout=10.0)
    (call,) = commands.calls("scontrol")
    assert call.startswith("update JobId=3 AdminComment=qpu: a b xxx")
    assert len(call) < 600


def test_jobs_in_their_prolog_are_live():
    states = ["CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "NEW_WORD", "PENDING", "TIMEOUT"]
    listed = "".join(f"{number}\x1f{state}\n" for number, state in enumerate(states))
    assert parse_live_jobs(listed) == {"0", "1", "2", "3", "4"}


def test_the_times_of_all_jobs():
    rows = ["3\x1f100\x1f160\x1f*chem\x1f", "4\x1f100\x1fN/A\x1f\x1f", "x"]
    found = parse_all_job_times("\n".join(rows))
    assert {job: (each.created, each.started, each.project) for job, each in found.items()} == {
        "3": (100.0, 160.0, "chem")
    }
