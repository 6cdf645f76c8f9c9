"""What Slurm is configured with, parsed from recorded output of 22.05.8."""

from __future__ import annotations

import time

import pytest

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.slurm_facts import (
    Node,
    Partition,
    ask_facts,
    clock_skew,
    compress_nodes,
    expand_nodes,
    parse_nodes,
    parse_partitions,
)

NODE = (
    "NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 AvailableFeatures=(null) "
    "Gres=qpu:ibm_fez:1(S:0),qpu:FRESNEL:1 NodeAddr=127.0.0.1 NodeHostName=localhost Port=22542 "
    "Version=22.05.8 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=65536\n"
)
DOWN = "NodeName=n2 Gres=(null) NodeAddr=n2 NodeHostName=n2 State=DOWN\n"
PARTITIONS = (
    "PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A "
    "Nodes=n[1-2],gw TotalNodes=3\n"
    "PartitionName=quantum AllowGroups=qc,root AllowAccounts=chem Default=NO Nodes=gw\n"
    "PartitionName=empty AllowGroups=ALL AllowAccounts=ALL Default=NO Nodes=(null)\n"
)
CONFIG = """\
Configuration data as of {time}
AccountingStorageType   = accounting_storage/{storage}
KillWait                = 30 sec
PlugStackConfig         = /etc/slurm/plugstack.conf
Prolog                  = (null)
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at host is UP
"""
HELP = "Options provided by plugins:\n      --qpu=names             Comma separated list of QPUs\n"


def test_nodes_are_read_with_their_gres():
    assert parse_nodes(NODE + DOWN) == {
        "n1": Node(
            host="localhost",
            version="22.05.8",
            gres={"qpu": 2, "qpu:ibm_fez": 1, "qpu:FRESNEL": 1},
        ),
        "n2": Node(host="n2", version="", gres={}),
    }


def test_partitions_are_read_with_their_limits():
    assert parse_partitions(PARTITIONS) == {
        "main": Partition(
            nodes=frozenset({"n1", "n2", "gw"}), groups=None, accounts=None, is_default=True
        ),
        "quantum": Partition(
            nodes=frozenset({"gw"}),
            groups=frozenset({"qc", "root"}),
            accounts=frozenset({"chem"}),
            is_default=False,
        ),
        "empty": Partition(nodes=frozenset(), groups=None, accounts=None, is_default=False),
    }


@pytest.mark.parametrize(
    ("written", "nodes"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],gw", ["n1", "n2", "n3", "n7", "gw"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("", []),
    ],
)
def test_lists_of_nodes_are_expanded(written, nodes):
    assert expand_nodes(written) == nodes


@pytest.mark.parametrize(
    ("nodes", "written"),
    [
        (["n1"], "n1"),
        (["n3", "n1", "n2", "gw", "n7"], "gw,n[1-3,7]"),
        (["n01", "n02"], "n01,n02"),
        ([], ""),
    ],
)
def test_lists_of_nodes_are_written(nodes, written):
    assert compress_nodes(nodes) == written
    assert sorted(expand_nodes(written)) == sorted(nodes)


def at(seconds: float) -> str:
    """Write a time as scontrol does, in this host's time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


@pytest.mark.parametrize(
    ("told", "skew"), [(1000, 0), (1001, 0), (1061, 60), (939, -60), (998, -1)]
)
def test_the_skew_of_the_controllers_clock_is_a_lower_bound(told, skew):
    """The answer came between 1000 and 1001, in whole seconds."""
    shown = CONFIG.format(time=at(told), storage="none")

    assert clock_skew(shown, 1000.0, 1001.0) == skew
    assert clock_skew("", 1000.0, 1001.0) is None


def answer(commands, storage: str = "none") -> None:
    """Let Slurm answer."""
    config = CONFIG.format(time="@now@", storage=storage)
    licences = "LicenseName=qpu_a Total=2 Used=0 Free=2"
    answers = {"config": config, "node": NODE, "partition": PARTITIONS, "licenses": licences}
    for what, shown in answers.items():
        (commands.folder / what).write_text(shown)
    now = "$(date +%Y-%m-%dT%H:%M:%S)"
    commands.write(
        "scontrol", f'for last; do :; done; sed "s/@now@/{now}/" {commands.folder}/"$last"'
    )
    commands.write("sbatch", f"cat <<'END'\n{HELP}END")
    commands.write("sacctmgr", "printf 'root\\nchem\\n'")


def test_slurm_is_asked_once_for_each_thing(commands):
    answer(commands)

    facts = ask_facts()

    assert len(commands.calls("scontrol")) == 4
    assert commands.calls("sacctmgr") == []
    assert facts.config["KillWait"] == "30 sec"
    assert "Prolog" not in facts.config
    assert facts.licences == {"qpu_a": 2}
    assert facts.accounts is None
    assert facts.has_qpu_option
    assert abs(facts.clock_skew or 0.0) < 1
    assert facts.nodes_with("QPU:IBM_fez") == {"n1": 1}


def test_with_accounting_the_accounts_are_known(commands):
    answer(commands, storage="slurmdbd")

    assert ask_facts().accounts == {"root", "chem"}
    commands.write("sacctmgr", "echo 'slurmdbd: Connection refused' >&2; exit 1")
    assert ask_facts().accounts is None


def test_a_slurm_that_does_not_answer_is_an_error(commands):
    commands.write("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")

    with pytest.raises(SchedulerError, match="Unable to contact"):
        ask_facts()
