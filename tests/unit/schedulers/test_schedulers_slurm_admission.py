"""How Slurm keeps jobs of a QPU that is away pending, planned from recorded output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.admission import Capacity
from qrmi_workflows.schedulers.slurm_admission import (
    Gate,
    Reservation,
    Shown,
    SlurmAdmission,
    capacities_of,
    gates_of,
    parse_partition_states,
    parse_reservations,
    plan_changes,
)

# Recorded with 22.05.8; some of the fields are left out.
RESERVATIONS = """\
ReservationName=qpu_away_fez StartTime=2026-11-26T16:12:53 EndTime=2027-11-26T16:12:53 \
Duration=365-00:00:00 Nodes=(null) NodeCnt=0 Flags=ANY_NODES TRES=(null) Users=root \
Licenses=qpu_fez:1 State=ACTIVE BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)
ReservationName=upgrade StartTime=2026-12-01T08:00:00 EndTime=2026-12-01T18:00:00 \
Duration=10:00:00 Nodes=n[1-2] NodeCnt=2 Flags=MAINT,IGNORE_JOBS,SPEC_NODES TRES=cpu=16 Users=root \
Licenses=(null) State=INACTIVE BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)
"""
PARTITIONS = """\
PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES Nodes=n[1-2] \
PreemptMode=OFF State=UP TotalCPUs=16 TRES=cpu=16,mem=128G
PartitionName=quantum AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO Nodes=gw \
PreemptMode=OFF State=DOWN TotalCPUs=16
"""
LICENCES = """\
LicenseName=qpu_FRESNEL Total=1 Used=0 Free=1 Reserved=0 Remote=no
LicenseName=qpu_fez Total=5 Used=2 Free=3 Reserved=5 Remote=no
LicenseName=qpu_kyiv Total=5 Used=1 Free=4 Reserved=2 Remote=no
LicenseName=far@server Total=2 Used=2 Free=0 Reserved=0 Remote=yes
"""
NODES = """\
NodeName=n1 Arch=x86_64 Gres=qpu:fez:1,qpu:FRESNEL:1 GresDrain=N/A \
GresUsed=qpu:fez:1,qpu:FRESNEL:0 NodeAddr=127.0.0.1 State=MIXED ThreadsPerCore=1
NodeName=n2 Arch=x86_64 Gres=qpu:fez:1,qpu:FRESNEL:1 GresDrain=N/A \
GresUsed=qpu:fez:0,qpu:FRESNEL:0 NodeAddr=127.0.0.1 State=IDLE ThreadsPerCore=1
NodeName=n3 Arch=x86_64 Gres=qpu:fez:4 GresDrain=N/A \
GresUsed=qpu:fez:0 NodeAddr=127.0.0.1 State=IDLE+DRAIN ThreadsPerCore=1
NodeName=n4 Arch=x86_64 Gres=(null) NodeAddr=127.0.0.1 State=IDLE ThreadsPerCore=1
"""
RESERVE = (
    *("scontrol", "create", "reservation", "ReservationName=qpu_away_fez", "StartTime=now"),
    *("Duration=infinite", "Users=root", "Flags=LICENSE_ONLY", "Licenses=qpu_fez:5"),
)
DELETE = ("scontrol", "delete", "ReservationName=qpu_away_fez")
OURS = Reservation(name="qpu_away_fez", licences={"qpu_fez": 5}, start=0.0, is_active=True)


def site(*policies: QPUPolicy) -> SitePolicy:
    """A site with these QPUs."""
    return SitePolicy(path=Path("site.toml"), qpus={each.name: each for each in policies})


FEZ = QPUPolicy(name="fez", licence="qpu_fez", gres="qpu:fez")
BY_PARTITION = QPUPolicy(name="fez", gres="qpu:fez", partition="quantum")


def argvs(plan):
    return [change.argv for change in plan.changes]


@pytest.mark.parametrize(
    ("policy", "gate"),
    [
        (FEZ, Gate(kind="licence", names=("qpu_fez",))),
        # The licence leaves other jobs of the partition alone.
        (
            QPUPolicy(name="fez", licence="qpu_fez", partition="q"),
            Gate(kind="licence", names=("qpu_fez",)),
        ),
        (BY_PARTITION, Gate(kind="partition", names=("quantum",))),
        (
            QPUPolicy(name="fez", qpu_option=True, partitions=("a", "b")),
            Gate(kind="partition", names=("a", "b")),
        ),
        (
            QPUPolicy(name="fez", gres="qpu:fez", gres_nodes="gw1"),
            Gate(kind="node", names=("gw1",)),
        ),
        # All nodes of a cluster must not be reserved for one QPU.
        (QPUPolicy(name="fez", gres="qpu:fez", gres_nodes="n[1-2]"), None),
        (QPUPolicy(name="fez", gres="qpu:fez"), None),
        (QPUPolicy(name="fez", qpu_option=True), None),
    ],
)
def test_each_form_of_grant_has_its_gate(policy, gate):
    assert gates_of(site(policy)).get("fez") == gate


@pytest.mark.parametrize(
    "other",
    [
        {"licence": "qpu_fez"},
        {"partition": "quantum"},
        {"partitions": ("main", "quantum")},
        {"gres": "qpu:other", "gres_nodes": "gw[1-2]"},
    ],
)
def test_what_another_qpu_has_too_is_no_gate(other):
    shared = {
        "licence": QPUPolicy(name="fez", licence="qpu_fez"),
        "partition": BY_PARTITION,
        "partitions": BY_PARTITION,
        "gres": QPUPolicy(name="fez", gres="qpu:fez", gres_nodes="gw1"),
    }[next(iter(other))]

    assert "fez" not in gates_of(site(shared, QPUPolicy(name="other", **other)))


def test_reservations_are_read():
    ours, other = parse_reservations(RESERVATIONS)

    assert (ours.name, ours.licences, ours.is_active) == ("qpu_away_fez", {"qpu_fez": 1}, True)
    assert (other.name, other.licences, other.is_active) == ("upgrade", {}, False)
    assert list(parse_reservations("No reservations in the system\n")) == []


def test_states_of_partitions_are_read():
    assert parse_partition_states(PARTITIONS) == {"main": "UP", "quantum": "DOWN"}


def test_all_units_of_a_licence_are_reserved():
    plan = plan_changes(Shown(licences={"qpu_fez": 5}), {"fez"}, site(FEZ))

    assert argvs(plan) == [RESERVE]
    assert plan.ways == {"fez": "licence qpu_fez"}


def test_nothing_is_done_twice():
    shown = Shown(licences={"qpu_fez": 5}, reservations=(OURS,))

    assert plan_changes(shown, {"fez"}, site(FEZ)).changes == ()


def test_a_qpu_that_is_back_loses_its_reservation_and_others_keep_theirs():
    other = Reservation(name="upgrade", licences={}, start="", is_active=True)

    assert argvs(plan_changes(Shown(reservations=(OURS, other)), (), site(FEZ))) == [DELETE]


def test_a_reservation_of_a_qpu_that_the_policy_has_lost_is_deleted():
    plan = plan_changes(Shown(reservations=(OURS,)), {"fez"}, site(QPUPolicy(name="a")))
    assert argvs(plan) == [DELETE]


def test_a_reservation_follows_the_number_of_licences():
    fewer = replace(OURS, licences={"qpu_fez": 3})
    shown = Shown(licences={"qpu_fez": 5}, reservations=(fewer,))

    assert argvs(plan_changes(shown, {"fez"}, site(FEZ))) == [DELETE, RESERVE]


def test_what_an_administrator_has_reserved_is_left_to_them():
    theirs = Reservation(name="theirs", licences={"qpu_fez": 5}, start=0.0, is_active=True)

    plan = plan_changes(Shown(licences={"qpu_fez": 5}, reservations=(theirs,)), {"fez"}, site(FEZ))

    assert plan.changes == ()


def test_a_later_reservation_of_the_licence_is_not_overlapped():
    later = Reservation(name="later", licences={"qpu_fez": 5}, start=1796112000.0, is_active=False)

    plan = plan_changes(Shown(licences={"qpu_fez": 5}, reservations=(later,)), {"fez"}, site(FEZ))

    assert "EndTime=uts1796112000" in argvs(plan)[0]


def test_a_licence_of_a_server_is_named_as_slurm_does():
    far = QPUPolicy(name="far", licence="far")

    plan = plan_changes(Shown(licences={"far@server": 2}), {"far"}, site(far))

    assert "Licenses=far@server:2" in argvs(plan)[0]


def test_a_licence_that_slurm_lacks_keeps_nobody_waiting():
    plan = plan_changes(Shown(), {"fez"}, site(FEZ))

    assert plan.changes == ()
    assert plan.unsupported == {"fez": "Slurm has no licence 'qpu_fez'. Run `qpu doctor`"}


def test_a_node_is_reserved_for_maintenance():
    policy = QPUPolicy(name="fez", gres="qpu:fez", gres_nodes="gw1")

    (argv,) = argvs(plan_changes(Shown(), {"fez"}, site(policy)))

    assert argv[-2:] == ("Flags=MAINT,IGNORE_JOBS", "Nodes=gw1")


def test_a_partition_is_closed_and_opened_again():
    states = {"quantum": "UP", "main": "UP"}

    closing = plan_changes(Shown(partitions=states), {"fez"}, site(BY_PARTITION))
    opening = plan_changes(
        Shown(partitions={**states, "quantum": "DOWN"}), (), site(BY_PARTITION), closing.marks
    )

    down = ("scontrol", "update", "PartitionName=quantum", "State=DOWN")
    assert (argvs(closing), closing.marks) == ([down], {"quantum"})
    assert (argvs(opening), opening.marks) == ([(*down[:3], "State=UP")], frozenset())


@pytest.mark.parametrize("state", ["DOWN", "DRAIN", "INACTIVE"])
def test_a_partition_that_an_administrator_has_closed_is_not_opened(state):
    shown = Shown(partitions={"quantum": state})

    away = plan_changes(shown, {"fez"}, site(BY_PARTITION))
    back = plan_changes(shown, (), site(BY_PARTITION), away.marks)

    assert (away.changes, away.marks, back.changes) == ((), frozenset(), ())


def test_a_partition_that_an_administrator_has_opened_meanwhile_is_closed_while_the_qpu_is_away():
    plan = plan_changes(
        Shown(partitions={"quantum": "UP"}), {"fez"}, site(BY_PARTITION), {"quantum"}
    )
    assert [change.text for change in plan.changes] == ["set partition quantum to DOWN"]


def test_a_qpu_without_a_gate_is_named_with_the_remedy():
    plan = plan_changes(Shown(), {"fez"}, site(QPUPolicy(name="fez", qpu_option=True)))

    assert plan.changes == ()
    assert plan.unsupported["fez"].endswith('Give it a licence (licence = "qpu_{qpu}")')


def test_slurm_is_asked_as_often_as_there_are_kinds_of_gates(commands):
    commands.write("scontrol", "echo 'LicenseName=qpu_q1 Total=1 Used=0'")
    many = [QPUPolicy(name=f"q{n}", licence=f"qpu_q{n}") for n in range(1000)]

    SlurmAdmission().plan([each.name for each in many], site(*many))

    asked = [call.split()[-1] for call in commands.calls("scontrol")]
    assert asked == ["licenses", "reservation"]


def test_what_is_free_is_counted():
    policies = (
        FEZ,
        QPUPolicy(name="FRESNEL", gres="qpu:FRESNEL"),
        QPUPolicy(name="far", licence="far"),
        QPUPolicy(name="kyiv", licence="qpu_kyiv"),
        QPUPolicy(name="none", qpu_option=True),
    )

    assert capacities_of(site(*policies), LICENCES, NODES, [OURS]) == {
        # The drained node does not count, and neither does our own reservation.
        "fez": Capacity(free=1, total=2),
        "FRESNEL": Capacity(free=2, total=2),
        "far": Capacity(free=0, total=2),
        "kyiv": Capacity(free=2, total=5),
    }
    assert capacities_of(site(*policies), LICENCES, NODES)["fez"].free == 0, "it is another's"
