"""Slurm: keep jobs pending while their QPU is away, without touching a job.

By the first of these that the site policy has for a QPU (each seen with 22.05):

- its licence, all units of which are reserved: its jobs are pending with the reason `Licenses`;
- its own partition, which is set to `DOWN`: `PartitionDown`;
- its GRES on a node that has that of no other QPU, if the policy names the node (`gres_nodes`): the
  node is reserved for maintenance: `ReqNodeNotAvail`.

Jobs that have started go on, and new jobs can be submitted. Others cannot be used: without its GRES
on any node, Slurm refuses new jobs, and 22.05 can neither reserve a GRES nor change the count of a
licence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.admission import AdmissionPlan, Capacity, Change
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT, require_success, run_command
from qrmi_workflows.schedulers.gres import gres_of_node
from qrmi_workflows.schedulers.licences import offered_licences
from qrmi_workflows.schedulers.slurm_demand import waiting_jobs
from qrmi_workflows.schedulers.slurm_facts import expand_nodes
from qrmi_workflows.schedulers.slurm_times import parse_time, render_time

__all__ = [
    "Gate",
    "Reservation",
    "Shown",
    "SlurmAdmission",
    "capacities_of",
    "gates_of",
    "parse_partition_states",
    "parse_reservations",
    "plan_changes",
]

_PREFIX = "qpu_away_"
_UNSUPPORTED = (
    "Slurm cannot keep its jobs pending: it has no licence, no partition of its own, and no node "
    "of its own in `gres_nodes`. Its jobs start and fail with the message. Give it a licence "
    '(licence = "qpu_{qpu}")'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Where Slurm keeps the jobs of a QPU: by a licence, by partitions, or by a node."""

    kind: Literal["licence", "partition", "node"]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A reservation: its name, its licences with their counts, when it starts, if it is active.

    The start is in seconds since the epoch, and 0 if not known.
    """

    name: str
    licences: Mapping[str, int]
    start: float
    is_active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What Slurm shows: its reservations, the total of each licence, each partition's state."""

    reservations: tuple[Reservation, ...] = ()
    licences: Mapping[str, int] = field(default_factory=dict)
    partitions: Mapping[str, str] = field(default_factory=dict)


class SlurmAdmission:
    """Slurm's hooks (see `Admission`)."""

    def plan(
        self,
        away: Collection[str],
        site: SitePolicy,
        marks: Collection[str] = (),
        *,
        timeout: float = COMMAND_TIMEOUT,
    ) -> AdmissionPlan:
        """Ask `scontrol` for the reservations, and for licences and partitions if they matter."""
        kinds = {gate.kind for name, gate in gates_of(site).items() if name in away}
        licences = _ask("licenses", timeout) if "licence" in kinds else ""
        partitions = _ask("partition", timeout) if marks or "partition" in kinds else ""
        shown = Shown(
            reservations=tuple(parse_reservations(_ask("reservation", timeout))),
            licences=offered_licences(licences),
            partitions=parse_partition_states(partitions),
        )
        return plan_changes(shown, away, site, marks)

    def capacities(
        self, site: SitePolicy, *, timeout: float = COMMAND_TIMEOUT
    ) -> dict[str, Capacity]:
        """Ask `scontrol` for the licences and the nodes' GRES, and `squeue` for who waits."""
        policies = site.qpus.values()
        licences = _ask("licenses", timeout) if any(each.licence for each in policies) else ""
        nodes = _ask("node", timeout) if any(each.gres for each in policies) else ""
        is_reserved = re.search(r"\bReserved=[1-9]", licences)
        shown = _ask("reservation", timeout) if is_reserved else ""
        found = capacities_of(site, licences, nodes, parse_reservations(shown))
        waiting = waiting_jobs(site, timeout=timeout) or {}
        return {name: replace(each, waiting=waiting.get(name)) for name, each in found.items()}


def _ask(what: str, timeout: float) -> str:
    argv = ["scontrol", "--oneliner", "--all", "--details", "show", what]
    return require_success(run_command(argv, timeout=timeout)).stdout


def gates_of(site: SitePolicy) -> dict[str, Gate]:
    """Return how Slurm can keep the jobs of each QPU pending, and no others; none if it cannot."""
    policies = site.qpus.values()
    licences = Counter(each.licence for each in policies)
    partitions = Counter(name for each in policies for name in set(each.all_partitions))
    nodes = Counter(name for each in policies for name in _nodes(each))
    found = {}
    for policy in policies:
        own_nodes = _nodes(policy)
        if policy.licence and licences[policy.licence] == 1:
            found[policy.name] = Gate(kind="licence", names=(policy.licence,))
        elif policy.all_partitions and all(partitions[each] == 1 for each in policy.all_partitions):
            found[policy.name] = Gate(kind="partition", names=policy.all_partitions)
        # On one node only: a policy that lists the cluster's nodes must not close the cluster.
        elif len(own_nodes) == 1 and all(nodes[each] == 1 for each in own_nodes):
            found[policy.name] = Gate(kind="node", names=tuple(own_nodes))
    return found


def _nodes(policy: QPUPolicy) -> set[str]:
    return set(expand_nodes(policy.gres_nodes)) if policy.gres and policy.gres_nodes else set()


def parse_reservations(scontrol_output: str) -> Iterable[Reservation]:
    """Parse `scontrol --oneliner show reservation`."""
    for line in scontrol_output.splitlines():
        pairs = dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", line))
        if "ReservationName" not in pairs:
            continue
        licences = {}
        for entry in filter(None, pairs.get("Licenses", "").replace("(null)", "").split(",")):
            name, _, count = entry.rpartition(":")
            licences[name or count] = int(count) if name and count.isdigit() else 1
        yield Reservation(
            name=pairs["ReservationName"],
            licences=licences,
            start=_time(pairs.get("StartTime", "")),
            is_active=pairs.get("State") == "ACTIVE",
        )


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError:
        return 0.0


def parse_partition_states(scontrol_output: str) -> dict[str, str]:
    """Parse `scontrol --oneliner show partition`: each partition's state."""
    pairs = re.findall(r"^PartitionName=(\S+)\s.*?\sState=(\S+)", scontrol_output, re.MULTILINE)
    return dict(pairs)


def plan_changes(
    shown: Shown, away: Collection[str], site: SitePolicy, marks: Collection[str] = ()
) -> AdmissionPlan:
    """Plan how to get from what Slurm shows to what is wanted; see `Admission.plan`.

    A partition that somebody else has closed is neither closed nor opened: only those in the marks
    are opened. Reservations of this software are known by their names.
    """
    changes: list[Change] = []
    ways, unsupported = {}, {}
    closed: dict[str, str] = {}
    kept = set()
    gates, reserved = gates_of(site), _Reserved(shown)
    for name in sorted(set(away) & site.qpus.keys()):
        gate = gates.get(name)
        if gate is None:
            unsupported[name] = _UNSUPPORTED
            continue
        if gate.kind == "licence" and not _full_name(gate.names[0], shown):
            unsupported[name] = f"Slurm has no licence {gate.names[0]!r}. Run `qpu doctor`"
            continue
        ways[name] = f"{gate.kind} {','.join(gate.names)}"
        if gate.kind == "partition":
            closed |= dict.fromkeys(gate.names, name)
            continue
        kept.add(f"{_PREFIX}{name}")
        changes += _reserve(name, gate, shown, reserved)
    changes += [_delete(reservation) for reservation in sorted(reserved.ours.keys() - kept)]
    partitions, remaining = _switch_partitions(shown.partitions, closed, set(marks), site)
    return AdmissionPlan(
        changes=(*changes, *partitions), marks=remaining, ways=ways, unsupported=unsupported
    )


class _Reserved:
    """The reservations that Slurm shows, to be looked up in.

    Attributes:
        ours: Those of this software, by name.
        taken: How many of each licence others have reserved now.
        later: When the next other reservation of each licence begins.
    """

    def __init__(self, shown: Shown) -> None:
        self.ours: dict[str, Reservation] = {}
        self.taken: Counter[str] = Counter()
        self.later: dict[str, float] = {}
        for each in shown.reservations:
            if each.name.startswith(_PREFIX):
                self.ours[each.name] = each
                continue
            for licence, count in each.licences.items():
                if each.is_active:
                    self.taken[licence] += count
                elif each.start:
                    self.later[licence] = min(each.start, self.later.get(licence, each.start))


def _reserve(qpu: str, gate: Gate, shown: Shown, reserved: _Reserved) -> list[Change]:
    name, target = f"{_PREFIX}{qpu}", gate.names[0]
    existing = reserved.ours.get(name)
    specification = ("Flags=MAINT,IGNORE_JOBS", f"Nodes={target}")
    wanted = {}
    if gate.kind == "licence":
        target = _full_name(target, shown)
        count = shown.licences[target] - reserved.taken[target]
        if count <= 0 and existing is None:
            return []  # somebody else has reserved all of them
        wanted = {target: max(1, count)}
        specification = ("Flags=LICENSE_ONLY", f"Licenses={target}:{wanted[target]}")
    # Slurm refuses to overlap a later reservation of a licence.
    later = reserved.later.get(target)
    times = ("StartTime=now", f"EndTime={render_time(later)}" if later else "Duration=infinite")
    create = ("scontrol", "create", "reservation", f"ReservationName={name}", *times)
    argv = (*create, "Users=root", *specification)
    added = Change(qpu=qpu, argv=argv, text=f"reserve {gate.kind} {target}")
    if existing is None:
        return [added]
    if existing.licences == wanted:
        return []
    # The policy, or the number of licences, has changed.
    return [_delete(name), added]


def _delete(reservation: str) -> Change:
    argv = ("scontrol", "delete", f"ReservationName={reservation}")
    qpu = reservation.removeprefix(_PREFIX)
    return Change(qpu=qpu, argv=argv, text=f"delete reservation {reservation}")


def _full_name(licence: str, shown: Shown) -> str:
    """Return a licence's name as Slurm has it: with its server, which a policy may leave out."""
    if licence in shown.licences:
        return licence
    return next((name for name in shown.licences if name.partition("@")[0] == licence), "")


def _switch_partitions(
    states: Mapping[str, str], closed: Mapping[str, str], marks: set[str], site: SitePolicy
) -> tuple[list[Change], frozenset[str]]:
    changes, remaining = [], set()
    for name, qpu in sorted(closed.items()):
        if states.get(name) == "UP":
            changes.append(_set_partition(name, "DOWN", qpu))
        if states.get(name) == "UP" or name in marks:
            remaining.add(name)
    for name in sorted(marks - closed.keys()):
        if states.get(name) == "DOWN":
            using = [each.name for each in site.qpus.values() if name in each.all_partitions]
            changes.append(_set_partition(name, "UP", next(iter(using), name)))
    return changes, frozenset(remaining)


def _set_partition(name: str, state: str, qpu: str) -> Change:
    argv = ("scontrol", "update", f"PartitionName={name}", f"State={state}")
    return Change(qpu=qpu, argv=argv, text=f"set partition {name} to {state}")


def capacities_of(
    site: SitePolicy, licences: str, nodes: str, reservations: Iterable[Reservation] = ()
) -> dict[str, Capacity]:
    """Return how much of each QPU is free.

    What others have reserved is not. The reservations of this software do not count: a QPU that is
    away may have as much capacity as before.

    Args:
        site: The site policy.
        licences: The output of `scontrol --oneliner show licenses`.
        nodes: The output of `scontrol --oneliner --details show node`.
        reservations: Slurm's reservations.
    """
    ours: Counter[str] = Counter()
    for each in reservations:
        if each.name.startswith(_PREFIX):
            ours.update(each.licences)
    of_licences = _licence_capacities(licences, ours)
    of_gres = _gres_capacities(nodes)
    found = {}
    for policy in site.qpus.values():
        counted = [
            capacity
            for capacity in (
                of_licences.get(policy.licence or ""),
                of_gres.get((policy.gres or "").lower()),
            )
            if capacity is not None
        ]
        if counted:
            found[policy.name] = Capacity(
                free=min(each.free for each in counted), total=min(each.total for each in counted)
            )
    return found


_COUNTED = ("Total", "Used", "Reserved")


def _licence_capacities(scontrol_output: str, ours: Mapping[str, int]) -> dict[str, Capacity]:
    found: dict[str, Capacity] = {}
    for line in scontrol_output.splitlines():
        pairs = dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", line))
        if (name := pairs.get("LicenseName")) and pairs.get("Total", "").isdecimal():
            total, used, reserved = (int(pairs.get(key, "0")) for key in _COUNTED)
            # `Free` includes what is reserved. Jobs in the reservation count in both.
            others = max(0, reserved - ours.get(name, 0))
            capacity = Capacity(free=max(0, total - used - others), total=total)
            found |= {name: capacity, name.partition("@")[0]: capacity}
    return found


def _gres_capacities(scontrol_output: str) -> dict[str, Capacity]:
    found: dict[str, Capacity] = {}
    for line in scontrol_output.splitlines():
        pairs = dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", line))
        state = pairs.get("State", "")
        if not pairs.get("NodeName") or re.search(r"DOWN|DRAIN|FAIL|MAINT|\*", state):
            continue
        used = gres_of_node(pairs.get("GresUsed", "").replace("N/A", ""))
        for name, total in gres_of_node(pairs.get("Gres", "").replace("(null)", "")).items():
            before = found.get(name.lower(), Capacity(free=0, total=0))
            free = max(0, total - used.get(name, 0))
            found[name.lower()] = Capacity(free=before.free + free, total=before.total + total)
    return found
