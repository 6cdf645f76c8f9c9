"""The lines that a site adds to slurm.conf and gres.conf, and takes back."""

import random

import pytest

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.slurm_conf import add_to_gres_conf, add_to_slurm_conf, take_back

SCRIPTS = {
    name: f"/etc/qrmi-workflows/slurm/{name}" for name in ("prolog", "task_prolog", "epilog")
}
FEZ = QPUPolicy(name="fez", gres="qpu:fez", gres_nodes="gw1", licence="qpu_fez")
SHARED = QPUPolicy(
    name="q", gres="qpu:q", licence="qpu_q", lanes=3, exclusive=False, partition="quantum",
    groups=("qc",), accounts=("a", "b"),
)  # fmt: skip
CONF = """\
# A site's own
ClusterName=here
prolog = /etc/slurm/prolog.d/*  # ours
TaskProlog=/etc/slurm/task.sh
PrologFlags=X11
GresTypes=gpu
Licenses=matlab:10,qpu_fez:1
NodeName=gw1 CPUs=4 Gres=gpu:2 State=UNKNOWN # the gateway
NodeName=n[1-4] CPUs=64
PartitionName=quantum Nodes=ALL
"""


def test_the_lines_of_a_site_with_scripts_and_gres_of_its_own():
    changed = add_to_slurm_conf(CONF, [FEZ, SHARED], SCRIPTS)

    assert changed.added == (
        "Prolog=/etc/qrmi-workflows/slurm/prolog",
        "TaskProlog=/etc/qrmi-workflows/slurm/task_prolog",
        "Epilog=/etc/qrmi-workflows/slurm/epilog",
        "PrologFlags=X11",
        "GresTypes=gpu,qpu",
        "Licenses=matlab:10,qpu_fez:1,qpu_q:3",
        "NodeName=gw1 CPUs=4 Gres=gpu:2,qpu:fez:1 State=UNKNOWN # the gateway",
    )
    assert changed.earlier == {
        "prolog": ("/etc/slurm/prolog.d/*",),
        "task_prolog": ("/etc/slurm/task.sh",),
        "epilog": (),
    }
    assert changed.by_hand == (
        "slurm.conf: add `Gres=qpu:q:3` to the NodeName line of the nodes from which it may be "
        "used.",
        "slurm.conf: refuse others' jobs early, by `PartitionName=quantum … AllowGroups=qc "
        "AllowAccounts=a,b`.",
        "slurm.conf: BatchStartTimeout=10: Slurm may requeue a batch job whose Prolog takes "
        "longer. Set it to more than 75.",
    )
    effective = [line for line in changed.text.splitlines() if not line.startswith("#")]
    assert effective == ["ClusterName=here", *CONF.splitlines()[8:], *changed.added]


def test_a_bare_site_gets_what_the_prolog_needs():
    changed = add_to_slurm_conf("ClusterName=x\n", [QPUPolicy(name="fez", licence="f")], SCRIPTS)
    assert changed.added[3:] == ("PrologFlags=Alloc", "Licenses=f:1")


def test_gres_conf_names_the_nodes():
    assert add_to_gres_conf("", [FEZ, SHARED, QPUPolicy(name="l", licence="l")]).added == (
        "NodeName=gw1 Name=qpu Type=fez Count=1 Flags=CountOnly",
        "Name=qpu Type=q Count=3 Flags=CountOnly",
    )


@pytest.mark.parametrize("text", [CONF, CONF.rstrip("\n"), "", "\n", "\n\n#x", "Prolog=\n"])
def test_it_is_taken_back_byte_by_byte(text):
    changed = add_to_slurm_conf(text, [FEZ, SHARED], SCRIPTS).text
    assert take_back(changed) == text
    assert take_back(text) == text
    # Again, and with another policy: nothing is added twice.
    assert add_to_slurm_conf(changed, [FEZ, SHARED], SCRIPTS).text == changed
    assert take_back(add_to_slurm_conf(changed, [FEZ], SCRIPTS).text) == text
    assert take_back(add_to_gres_conf(text, [FEZ]).text) == text


def test_random_files_are_taken_back_byte_by_byte():
    lines = [*CONF.splitlines(), "", "  ", "#x", "Epilog=/a", "licenses=a:1", "NodeName=gw1"]
    for seed in range(300):
        chosen = random.Random(seed)
        text = "\n".join(chosen.choices(lines, k=chosen.randrange(12)))
        changed = add_to_slurm_conf(text, [FEZ, SHARED], SCRIPTS).text
        assert take_back(changed) == text, seed


def test_later_changes_of_other_lines_stay():
    changed = add_to_slurm_conf(CONF, [FEZ], SCRIPTS).text + "KillWait=60\n"
    assert take_back(changed) == CONF + "KillWait=60\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Prolog=/a;rm -rf /", "must be a path without spaces"),
        ("Prolog=$(evil)", "must be a path without spaces"),
        ("PrologFlags=Alloc,NoHold", "NoHold"),
        ("Licenses=a:1,\\", "continues on the next line"),
    ],
)
def test_a_line_that_cannot_be_replaced_is_refused(line, message):
    with pytest.raises(ConfigError, match=message):
        add_to_slurm_conf(f"{line}\n", [FEZ], SCRIPTS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SlurmdDebug=debug2", "logs each variable that a TaskProlog exports"),
        ("slurmddebug = 5 # x", "logs each variable that a TaskProlog exports"),
        ("PrologEpilogTimeout=60", "Set it to more than 75"),
        ("PrologTimeout=75", "PrologTimeout=75 may end a script early"),
        ("EpilogTimeout=60", "Set it to more than 60"),
        ("EpilogTimeout=61", None),
        ("BatchStartTimeout=75", "BatchStartTimeout=75: Slurm may requeue a batch job"),
        ("BatchStartTimeout=100", None),
        (" include prolog.conf # ours", "includes prolog.conf: if that sets Prolog"),
        ("SlurmdDebug=verbose", None),
        ("PrologEpilogTimeout=300", None),
    ],
)
def test_settings_that_do_not_suit_are_named(line, message):
    text = f"BatchStartTimeout=90\n{line}\n"  # the last line counts
    named = add_to_slurm_conf(text, [QPUPolicy(name="f", licence="f")], SCRIPTS).by_hand
    assert named == () if message is None else message in named[0]
