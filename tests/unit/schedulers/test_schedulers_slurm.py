"""Slurm's argv builders and parsers, on recorded output."""

from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError, SchedulerError, UnknownQPUError
from qrmi_workflows.schedulers.base import JobState, QPURequest, RunningJob
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import gres_of_job, offered_gres, require_count, require_gres
from qrmi_workflows.schedulers.slurm import (
    Slurm,
    has_accounting,
    kill_wait_of,
    parse_running_job,
    qpu_options,
    refuse_options,
)

FEZ = QPUPolicy(name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez")


def test_a_request_becomes_gres_and_licence():
    assert qpu_options(QPURequest(qpu="ibm_fez"), FEZ) == [
        "--gres=qpu:ibm_fez:1",
        "--licenses=qpu_ibm_fez:1",
    ]


def test_a_request_becomes_whatever_the_site_has():
    policy = QPUPolicy(name="a", qpu_option=True, partition="quantum")

    assert qpu_options(QPURequest(qpu="a"), policy) == ["--partition=quantum", "--qpu=a"]
    assert qpu_options(QPURequest(qpu="ibm_fez", count=2), FEZ)[0] == "--gres=qpu:ibm_fez:2"


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


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "1"])
def test_a_count_that_nothing_could_grant_is_refused(count):
    with pytest.raises(RequestError, match="whole number from 1 on"):
        QPURequest(qpu="a", count=count)


@pytest.mark.parametrize("options", ["--gres=gpu:1", "#SBATCH --gres gpu:1", "-x --licenses=a"])
def test_an_option_that_would_override_the_request_is_refused(options):
    with pytest.raises(RequestError, match="would override"):
        refuse_options(options, ["gres", "licenses"], where="scheduler_options")


def test_other_options_pass():
    refuse_options("--gres-flags=enforce-binding -n1", ["gres"], where="scheduler_options")


def test_the_gres_of_all_nodes_are_read():
    output = "qpu:ibm_fez:1(S:0),qpu:FRESNEL:1\ngpu:2,qpu:ibm_fez:5,tape\n(null)\n"

    assert offered_gres(output) == {"qpu:ibm_fez": 5, "qpu:FRESNEL": 1, "gpu": 2, "tape": 1}


def test_a_qpu_whose_gres_no_node_has_is_refused_with_those_there_are():
    require_gres(FEZ, {"qpu:IBM_FEZ"})  # Slurm does not mind the case
    with pytest.raises(UnknownQPUError, match=r"no node has GRES 'qpu:ibm_fez'; allowed: a, b"):
        require_gres(FEZ, {"qpu:a", "qpu:b", "gpu"})


def test_more_of_a_qpu_than_any_node_has_is_refused():
    require_count(QPURequest(qpu="ibm_fez", count=5), FEZ, {"qpu:ibm_fez": 5})
    with pytest.raises(RequestError, match=r"no node of this Slurm has more than 5 .* fewer"):
        require_count(QPURequest(qpu="ibm_fez", count=6), FEZ, {"qpu:IBM_fez": 5})


def test_a_qpu_that_no_gres_counts_has_no_limit_here():
    require_count(QPURequest(qpu="a", count=6), QPUPolicy(name="a", qpu_option=True), {"gpu": 1})


@pytest.mark.parametrize("recorded", ["accounting_storage/none", "(null)"])
def test_accounting_that_is_off_is_seen(recorded):
    assert not has_accounting(f"AccountingStorageTRES = cpu\nAccountingStorageType = {recorded}\n")
    assert has_accounting("AccountingStorageType   = accounting_storage/slurmdbd\n")


@pytest.mark.parametrize("written", ["gres:qpu:ibm_fez:1", "gres/qpu:ibm_fez:1"])
def test_the_gres_of_a_job_is_read_from_both_forms(written):
    shown = f"JobId=3 JobName=x\n   JobState=RUNNING Reason=None\n   TresPerNode={written}\n"

    assert gres_of_job(shown + "   Licenses=qpu_ibm_fez:1 Network=(null)") == {
        "state": "RUNNING",
        "gres": "qpu:ibm_fez:1",
        "licences": "qpu_ibm_fez:1",
    }


@pytest.mark.parametrize(
    ("output", "job"),
    [("17\n", "17"), ("17;alpha\n", "17"), ("quota: fine\n17\n", "17"), ("", None), ("no", None)],
)
def test_the_id_of_a_submission_is_read(output, job):
    assert Slurm().parse_job_id(output) == job


def test_states_are_read_and_an_unknown_one_is_unknown():
    output = "1|RUNNING|a\n2_3|COMPLETING|b\n4|CANCELLED by 0|c\n5|NEWLY_INVENTED|d|e\nnoise\n"

    assert Slurm().parse_status(output) == {
        "1": (JobState.RUNNING, "a"),
        "2_3": (JobState.RUNNING, "b"),
        "4": (JobState.CANCELLED, "c"),
        "5": (JobState.UNKNOWN, "d|e"),
    }


def test_commands_are_argv_lists_for_the_right_cluster():
    slurm = Slurm(clusters="alpha")

    assert slurm.submit_argv(Path("a b.sh")) == [
        "sbatch", "--parsable", "--clusters=alpha", "a b.sh",
    ]  # fmt: skip
    assert slurm.cancel_argv(["1", "2"]) == ["scancel", "--clusters=alpha", "1", "2"]


def test_a_command_that_is_absent_silent_or_failing_is_an_error_with_its_words():
    with pytest.raises(SchedulerError, match="not on PATH"):
        run_command(["no-such-scheduler"])
    with pytest.raises(SchedulerError, match=r"did not end within 0\.05 s") as silent:
        run_command(["sleep", "5"], timeout=0.05)
    with pytest.raises(SchedulerError, match="exit status 3: denied"):
        require_success(run_command(["sh", "-c", "echo denied >&2; exit 3"]))

    assert silent.value.retryable
    assert silent.value.argv == ("sleep", "5")


def test_killwait_is_read_from_the_configuration():
    shown = "KillOnBadExit           = 0\nKillWait                = 30 sec\nLaunchParameters = \n"

    assert kill_wait_of(shown) == 30.0
    assert kill_wait_of("") is None


@pytest.mark.parametrize(
    ("row", "now"),
    [
        ("7|RUNNING|0:05|9:55", RunningJob(ending=False, used=5, left=595)),
        ("7|RUNNING|1-02:03:04|UNLIMITED", RunningJob(ending=False, used=93784, left=None)),
        ("7|COMPLETING|1:00:00|NOT_SET", RunningJob(ending=True, used=3600, left=None)),
        ("7|CANCELLED|0:00|INVALID", RunningJob(ending=True, used=0, left=None)),
        ("8|RUNNING|0:05|9:55", None),
        ("", None),
    ],
)
def test_a_job_that_has_started_is_read(row, now):
    sibling = "6|RUNNING|0:09|0:51\n"

    assert parse_running_job(sibling + row, "7") == now
