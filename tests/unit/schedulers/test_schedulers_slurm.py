"""Slurm: argv builders, parsers on recorded output, and queries answered by fake commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError
from qrmi_workflows.schedulers.base import JobState, JobStatus, QPURequest, RunningJob
from qrmi_workflows.schedulers.slurm import Slurm, parse_running_job
from qrmi_workflows.schedulers.slurm_config import cluster_of, has_accounting, kill_wait_of
from qrmi_workflows.schedulers.slurm_options import qpu_options, refuse_options
from qrmi_workflows.state.process import JobIdentity

FEZ = QPUPolicy(name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez")
SITE = SitePolicy(path=Path("site.toml"), qpus={"ibm_fez": FEZ})
CONFIG = """
AccountingStorageTRES   = cpu
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = alpha
KillOnBadExit           = 0
KillWait                = 30 sec
LaunchParameters        =
"""

# The process's own job


def test_the_job_of_a_process_is_read_from_its_environment():
    environ = {
        "SLURM_JOB_ID": "17",
        "SLURM_CLUSTER_NAME": "alpha",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
    }

    assert Slurm().this_job(environ) == JobIdentity(
        id="17", cluster="alpha", restart=2, job_step="0", rank="3"
    )
    assert Slurm().this_job({"SLURM_JOB_ID": "17"}) == JobIdentity(id="17")
    assert Slurm().this_job({"SLURM_CLUSTER_NAME": "alpha"}) is None


def test_an_invalid_restart_count_counts_as_none():
    job = Slurm().this_job({"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "x"})

    assert job is not None
    assert job.restart == 0


# Requests for a QPU


def test_a_request_becomes_a_gres_and_a_licence():
    assert Slurm().qpu_options(QPURequest(qpu="ibm_fez"), SITE) == [
        "--gres=qpu:ibm_fez:1",
        "--licenses=qpu_ibm_fez:1",
    ]


def test_a_request_becomes_the_options_that_the_site_uses():
    policy = QPUPolicy(name="a", qpu_option=True, partition="quantum")

    assert qpu_options(QPURequest(qpu="a"), policy) == ["--partition=quantum", "--qpu=a"]
    several = QPUPolicy(name="a", partitions=("quantum", "debug"))
    assert qpu_options(QPURequest(qpu="a"), several) == ["--partition=quantum,debug"]
    assert qpu_options(QPURequest(qpu="ibm_fez", count=2), FEZ)[0] == "--gres=qpu:ibm_fez:2"


@pytest.mark.parametrize("options", ["--gres=gpu:1", "#SBATCH --gres gpu:1", "-x --licenses=a"])
def test_an_option_that_would_override_the_request_is_refused(options):
    with pytest.raises(RequestError, match="would override"):
        refuse_options(options, ["gres", "licenses"], where="scheduler_options")


def test_other_options_are_accepted():
    refuse_options("--gres-flags=enforce-binding -n1", ["gres"], where="scheduler_options")


def test_a_request_is_compared_with_what_the_nodes_offer(commands):
    commands.write("sinfo", "echo qpu:ibm_fez:2,gpu:4")
    commands.write("scontrol", "echo LicenseName=qpu_ibm_fez Total=3 Used=0")
    Slurm().check_offered(QPURequest(qpu="ibm_fez", count=2), SITE)

    with pytest.raises(RequestError, match="no node of this Slurm has more than 2"):
        Slurm().check_offered(QPURequest(qpu="ibm_fez", count=3), SITE)
    commands.write("scontrol", "echo LicenseName=other Total=3 Used=0")
    with pytest.raises(RequestError, match="this Slurm has no licence 'qpu_ibm_fez'"):
        Slurm().check_offered(QPURequest(qpu="ibm_fez", count=1), SITE)
    commands.write("sinfo", "echo gpu:4")
    with pytest.raises(RequestError, match="no node of this Slurm has GRES 'qpu:ibm_fez'"):
        Slurm().check_offered(QPURequest(qpu="ibm_fez"), SITE)
    commands.write("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        Slurm().check_offered(QPURequest(qpu="ibm_fez"), SITE)


# Commands, and the parsers of what they print


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--gres=qpu:a:1", "#SBATCH --gres=qpu:a:1"),
        ("--constraint=a&[b|c]", "#SBATCH --constraint=a&[b|c]"),
        ("--output=/a run/#1", "#SBATCH '--output=/a run/#1'"),
    ],
)
def test_a_directive_is_quoted_where_sbatch_would_split_it(option, line):
    assert Slurm().directive(option) == line


def test_commands_are_argv_lists_for_the_right_cluster():
    slurm = Slurm(clusters="alpha")

    assert slurm.submit_argv(Path("a b.sh")) == [
        "sbatch", "--parsable", "--clusters=alpha", "a b.sh",
    ]  # fmt: skip
    assert slurm.cancel_argv(["1", "2"]) == ["scancel", "--clusters=alpha", "1", "2"]
    assert {"--me", "--states=all", "--name=x", "--clusters=alpha"} < set(
        slurm.status_argv(name="x")
    )
    assert {"--clusters=alpha", "--jobs=1,2"} < set(slurm.history_argv(["1", "2"]))


@pytest.mark.parametrize(
    ("output", "job"),
    [("17\n", "17"), ("17;alpha\n", "17"), ("quota: fine\n17\n", "17"), ("", None), ("no", None)],
)
def test_the_id_of_a_submitted_job_is_read(output, job):
    assert Slurm().parse_job_id(output) == job


def listing(text: str) -> str:
    """Return what squeue and sacct print for these rows."""
    return text.replace("|", "\x1f")


def test_the_jobs_that_squeue_lists_are_read():
    output = (
        "a line of the site's\n"
        "1|1|RUNNING|0|None|(null)|a|\n"
        "2_3|4|COMPLETING|768|NonZeroExitCode|the comment|b|\n"
        "5|5|PENDING|0|Resources|(null)|c|\n"
        "6|6|NEWLY_INVENTED|9|None||e|\n"
        "noise\n"
    )

    assert Slurm().parse_status(listing(output)) == {
        "1": JobStatus(state=JobState.RUNNING, word="RUNNING", job_id="1", name="a", exit_code=0),
        "2_3": JobStatus(
            state=JobState.RUNNING,
            word="COMPLETING",
            job_id="4",
            name="b",
            comment="the comment",
            exit_code=3,
            reason="NonZeroExitCode",
            is_completing=True,
        ),
        "5": JobStatus(
            state=JobState.PENDING,
            word="PENDING",
            job_id="5",
            name="c",
            exit_code=0,
            reason="Resources",
        ),
        "6": JobStatus(
            state=JobState.UNKNOWN, word="NEWLY_INVENTED", job_id="6", name="e", exit_code=137
        ),
    }


def test_names_and_comments_may_have_bars_and_line_breaks():
    """A job that is not listed would count as ended, and its lease would be released."""
    job = listing("5|5|RUNNING|0|None|") + "ticket|42\nowner me\n\x1fna|me,x\x1f\n"

    listed = Slurm().parse_status(job + job.replace("5", "6"))

    assert [(id_, job.comment, job.name, job.state) for id_, job in listed.items()] == [
        ("5", "ticket|42\nowner me", "na|me,x", JobState.RUNNING),
        ("6", "ticket|42\nowner me", "na|me,x", JobState.RUNNING),
    ]


WAITING = {"PENDING", "CONFIGURING", "EXPEDITING", "REQUEUED", "REQUEUE_FED"}
HELD = {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
WITH_PROCESSES = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"}
STOPPED = {"SUSPENDED", "STOPPED"}
ENDED = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "REVOKED",
}
"""Together, every word of `job_state_string` in Slurm 22.05.8 and 26.05.3."""


@pytest.mark.parametrize(
    ("words", "is_final", "has_processes"),
    [
        (WAITING, False, False),
        (HELD, False, False),
        (WITH_PROCESSES, False, True),
        (STOPPED, False, True),
        (ENDED, True, False),
    ],
    ids=["waiting", "held", "with processes", "stopped", "ended"],
)
def test_every_state_of_slurms_is_translated(words, is_final, has_processes):
    for word in words:
        status = Slurm().parse_status(listing(f"7|7|{word}|0|None||a|\n"))["7"]

        assert status.word == word
        assert status.state is not JobState.UNKNOWN, word
        assert status.state.is_final == is_final, word
        assert status.state.may_have_processes == has_processes, word


def test_only_a_completed_job_counts_as_completed():
    listed = Slurm().parse_status(
        listing("".join(f"{i}|{i}|{word}|0|None||a|\n" for i, word in enumerate(sorted(ENDED))))
    )

    assert [job.word for job in listed.values() if job.state is JobState.COMPLETED] == ["COMPLETED"]


def test_a_name_with_a_comma_is_not_asked_for_as_two():
    assert not any(option.startswith("--name") for option in Slurm().status_argv(name="a,b"))


def test_the_jobs_that_sacct_lists_are_read():
    output = "4|4|CANCELLED by 0|0:15|None||x|\n5|5|OUT_OF_MEMORY|0:9|||y|\n6|6|FAILED|3:0|||z|\n"

    listed = Slurm().parse_status(listing(output))

    assert [(job.state, job.word, job.exit_code) for job in listed.values()] == [
        (JobState.CANCELLED, "CANCELLED", 143),
        (JobState.FAILED, "OUT_OF_MEMORY", 137),
        (JobState.FAILED, "FAILED", 3),
    ]


@pytest.mark.parametrize("value", ["accounting_storage/none", "(null)"])
def test_a_site_without_accounting_is_recognised(value):
    assert not has_accounting(f"AccountingStorageTRES = cpu\nAccountingStorageType = {value}\n")
    assert has_accounting(CONFIG)


def test_kill_wait_and_the_cluster_are_read_from_the_configuration():
    assert kill_wait_of(CONFIG) == 30.0
    assert cluster_of(CONFIG) == "alpha"
    assert kill_wait_of("") is None
    assert cluster_of("") is None


@pytest.mark.parametrize(
    ("row", "job"),
    [
        ("7|RUNNING|0:05|9:55", RunningJob(is_ending=False, used=5, left=595)),
        ("7|RUNNING|1-02:03:04|UNLIMITED", RunningJob(is_ending=False, used=93784, left=None)),
        ("7|COMPLETING|1:00:00|NOT_SET", RunningJob(is_ending=True, used=3600, left=None)),
        ("7|CANCELLED|0:00|INVALID", RunningJob(is_ending=True, used=0, left=None)),
        ("8|RUNNING|0:05|9:55", None),
        ("", None),
    ],
)
def test_a_started_job_is_read(row, job):
    sibling = "6|RUNNING|0:09|0:51\n"

    assert parse_running_job(sibling + row, "7") == job


# Questions


def test_the_live_jobs_are_those_that_may_have_processes(commands):
    rows = "1|1|RUNNING|0||||\\n2|2|PENDING|0||||\\n3|3|COMPLETED|0||||\\n4_1|5|SUSPENDED|0||||"
    commands.write("squeue", listing(f"printf '{rows}\\n'"))

    assert Slurm().live_jobs() == {"1", "5"}


def test_a_live_job_whose_comment_has_line_breaks_is_live(commands):
    row = r"15|15|RUNNING|0|None|ticket 42\nowner me|multi-live|\n"
    commands.write("squeue", listing(f"printf '{row}'"))

    assert Slurm().live_jobs() == {"15"}


def test_another_cluster_is_asked_by_its_name(commands, monkeypatch):
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)
    commands.write("squeue", ":")
    commands.write("scontrol", f"cat <<'END'{CONFIG}END")

    Slurm().live_jobs("alpha")
    Slurm().live_jobs("beta")

    own, other = commands.calls("squeue")
    assert "--clusters" not in own
    assert "--clusters=beta" in other


def test_where_slurm_is_not_installed_the_live_jobs_are_not_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert Slurm().live_jobs() is None


def test_queries_are_answered_by_slurms_commands(commands):
    commands.write(
        "squeue",
        """
case "$*" in
*%A*) echo '7|RUNNING|0:05|9:55' ;;
*%V*) echo '2026-01-01T00:00:00|2026-01-01T00:01:30|*physics' ;;
*RestartCnt*) echo '2                   ' ;;
esac""",
    )
    commands.write("scontrol", "echo 'KillWait = 60 sec'")

    assert Slurm().running_job("7") == RunningJob(is_ending=False, used=5, left=595)
    times = Slurm().job_times("7")
    assert times is not None
    assert (times.queue_wait, times.project) == (90, "physics")
    assert datetime.fromtimestamp(times.created).isoformat() == "2026-01-01T00:00:00"
    assert Slurm().restarts("7") == 2
    assert Slurm().kill_wait() == 60


def test_queries_without_an_answer_return_none_or_raise(commands):
    for name in ("squeue", "scontrol"):
        commands.write(name, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")

    assert Slurm().running_job("7") is None
    assert Slurm().job_times("7") is None
    assert Slurm().restarts("7") is None
    assert Slurm().kill_wait() is None
    with pytest.raises(SchedulerError, match="Invalid job id"):
        Slurm().live_jobs()
