"""Slurm: whether it grants the QPUs as the site policy says; for `qpu doctor`.

Each check is a function in `CHECKS`, which takes what Slurm is configured with and the site policy,
and yields findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.gres import require_gres
from qrmi_workflows.schedulers.licences import require_licence
from qrmi_workflows.schedulers.slurm_access import check_access
from qrmi_workflows.schedulers.slurm_admission import gates_of
from qrmi_workflows.schedulers.slurm_facts import SlurmFacts, compress_nodes, expand_nodes

__all__ = ["CHECKS", "examine"]

_OLDEST = (22, 5)
_SKEW_SECONDS = 5.0

Check = Callable[[SlurmFacts, SitePolicy], Iterator[Finding]]


def examine(facts: SlurmFacts, site: SitePolicy | None) -> list[Finding]:
    """Run all checks; without a site policy, those that need none."""
    if site is None:
        return [*_check_version(facts), *_check_clock(facts)]
    return [finding for check in CHECKS for finding in check(facts, site)]


def _check_version(facts: SlurmFacts, _site: SitePolicy | None = None) -> Iterator[Finding]:
    written = facts.config.get("SLURM_VERSION", "")
    numbers = tuple(int(part) for part in written.split(".")[:2] if part.isdecimal())
    if numbers and numbers < _OLDEST:
        yield Finding.error("slurm", f"Slurm {written}: must be 22.05 or later.", "Upgrade Slurm.")
    elif numbers:
        yield Finding.ok("slurm", f"Slurm {written}")
    for name, node in facts.nodes.items():
        if node.version and node.version.split(".")[:2] != written.split(".")[:2]:
            yield Finding.warning(
                "slurm",
                f"node {name} runs Slurm {node.version}, its controller {written}.",
                "Finish the upgrade before users submit jobs with QPUs.",
            )


def _check_clock(facts: SlurmFacts, _site: SitePolicy | None = None) -> Iterator[Finding]:
    if facts.clock_skew is None:
        return
    if abs(facts.clock_skew) <= _SKEW_SECONDS:
        yield Finding.ok("clock", "this host and Slurm's controller agree")
        return
    side = "ahead of" if facts.clock_skew > 0 else "behind"
    yield Finding.warning(
        "clock",
        f"the clock of Slurm's controller is {abs(facts.clock_skew):.0f} s {side} this host's.",
        "Synchronise both by NTP; MUNGE refuses credentials of hosts that differ by minutes.",
    )


def _check_gres(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    offered: dict[str, int] = {}
    for node in facts.nodes.values():
        for name, count in node.gres.items():
            offered[name] = max(count, offered.get(name, 0))
    for policy in _with(site, "gres"):
        try:
            require_gres(QPURequest(qpu=policy.name), site, offered)
        except RequestError as error:
            yield _refused("gres", error)
            continue
        nodes = compress_nodes([*facts.nodes_with(str(policy.gres))])
        yield Finding.ok("gres", f"QPU {policy.name!r}: {policy.gres} on {nodes}")
        listed = policy.gres_nodes and compress_nodes(expand_nodes(policy.gres_nodes))
        if listed and listed != nodes:
            yield Finding.error(
                "gres",
                f"QPU {policy.name!r}: gres_nodes = {policy.gres_nodes!r} "
                f"({site.place(policy.name, 'gres_nodes')}), but the nodes with {policy.gres!r} "
                f"are {nodes}.",
                f'Correct gres_nodes, or `Gres=` in slurm.conf: gres_nodes = "{nodes}".',
            )


def _check_licences(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    for policy in _with(site, "licence"):
        try:
            require_licence(QPURequest(qpu=policy.name), site, facts.licences)
        except RequestError as error:
            yield _refused("licences", error)
            continue
        total = _total(facts, policy)
        yield Finding.ok("licences", f"QPU {policy.name!r}: {total} of {policy.licence}")


def _check_exclusion(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    """Compare how many jobs Slurm lets hold a QPU at a time with how many may."""
    for policy in site.qpus.values():
        yield from _check_units(facts, site, policy)
    for one, other in combinations(site.qpus.values(), 2):
        is_same_gres = one.gres is not None and one.gres == other.gres
        if is_same_gres and one.licence == other.licence and not one.qpu_option:
            yield Finding.warning(
                "exclusion",
                f"QPUs {one.name!r} and {other.name!r} have the same GRES {one.gres!r}, and no "
                "licences that differ: a job that requests one holds the other, too.",
                'Give each a licence (licence = "qpu_{qpu}"), or a GRES with a type.',
            )


def _check_units(facts: SlurmFacts, site: SitePolicy, policy: QPUPolicy) -> Iterator[Finding]:
    if not policy.gres and not policy.licence:
        yield Finding.warning(
            "exclusion",
            f"QPU {policy.name!r}: neither a GRES nor a licence counts the jobs that hold it; most "
            "vendors do not keep two jobs from it.",
            f"Add `Licenses=qpu_{policy.name}:1` to slurm.conf, and licence = "
            f'"qpu_{{qpu}}" to {site.path}.',
        )
        return
    nodes = facts.nodes_with(policy.gres) if policy.gres else {}
    of_licence = _total(facts, policy)
    total = sum(nodes.values()) if of_licence is None else of_licence
    if total == 0 or (policy.gres and not nodes):
        return  # reported already
    wanted = _wanted_units(policy, max(nodes.values()) if of_licence is None else of_licence)
    yield from _compare_units(site, policy, total, wanted, [*nodes])


def _wanted_units(policy: QPUPolicy, counted: int) -> int:
    """Return how many jobs may hold a QPU at a time.

    Args:
        policy: Its policy.
        counted: The count of its licence, or the largest count of its GRES on a node.
    """
    if policy.exclusive is None:
        return min(counted, policy.lanes)
    return 1 if policy.exclusive else policy.lanes


def _compare_units(
    site: SitePolicy, policy: QPUPolicy, total: int, wanted: int, nodes: list[str]
) -> Iterator[Finding]:
    line = f"`Licenses={policy.licence}:{wanted}` in slurm.conf"
    counted = f"licence {policy.licence!r}"
    if policy.licence is None:
        counted = f"GRES {policy.gres!r}, which is counted per node, on {compress_nodes(nodes)}"
        line = (
            f"`Licenses=qpu_{policy.name}:{wanted}` in slurm.conf and licence = "
            f'"qpu_{{qpu}}" in {site.path}; or offer the GRES on one node only'
        )
    if total > wanted:
        who = "for one job" if wanted == 1 else f"shared by {wanted} lanes"
        yield Finding.warning(
            "exclusion",
            f"QPU {policy.name!r}: {total} jobs can hold it at a time by {counted}, but it is "
            f"{who}.",
            f"Set {line}.",
        )
    elif total < wanted:
        yield Finding.warning(
            "exclusion",
            f"QPU {policy.name!r}: jobs can hold only {total} of its {wanted} lanes by {counted}.",
            f"Set {line}, or correct `lanes` in {site.place(policy.name, 'lanes')}.",
        )


def _check_admission(_facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    """Name the QPUs whose jobs cannot wait in Slurm while the QPU is away."""
    gates = gates_of(site)
    for policy in site.qpus.values():
        if policy.name in gates:
            continue
        lacks = "shares its licence with another QPU" if policy.licence else "has no licence"
        yield Finding.warning(
            "admission",
            f"QPU {policy.name!r}: its jobs cannot be kept pending while it is offline or in "
            f"maintenance, but start and fail: it {lacks}, and has neither a partition nor a node "
            "(gres_nodes) of its own.",
            f'Give it a licence of its own: licence = "qpu_{{qpu}}" in {site.path}, and '
            f"`Licenses=qpu_{policy.name}:{policy.lanes if policy.exclusive is False else 1}` in "
            "slurm.conf.",
        )


def _check_partitions(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    for policy in site.qpus.values():
        key = "partitions" if policy.partitions else "partition"
        for name in policy.all_partitions:
            found = facts.partitions.get(name)
            place = site.place(policy.name, key)
            if found is None:
                yield Finding.error(
                    "partitions",
                    f"QPU {policy.name!r}: this Slurm has no partition {name!r}; it has: "
                    f"{', '.join(sorted(facts.partitions)) or 'none'}.",
                    f"Correct `{key}` in {place}, or add the partition to slurm.conf.",
                )
                continue
            nodes = facts.nodes_with(policy.gres) if policy.gres else {}
            if nodes and not found.nodes & nodes.keys():
                yield Finding.error(
                    "partitions",
                    f"QPU {policy.name!r}: no node of partition {name!r} has GRES {policy.gres!r}, "
                    f"whose nodes are {compress_nodes([*nodes])}: its jobs would never start.",
                    f"Correct `{key}` in {place}, or add these nodes to the partition.",
                )
            else:
                yield Finding.ok("partitions", f"QPU {policy.name!r}: partition {name}")


def _check_spank(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    using = [policy for policy in site.qpus.values() if policy.qpu_option]
    file = facts.config.get("PlugStackConfig", "plugstack.conf")
    if using and not facts.has_qpu_option:
        yield Finding.error(
            "spank",
            f"QPU {using[0].name!r}: qpu_option = true "
            f"({site.place(using[0].name, 'qpu_option')}), but sbatch on this host has no --qpu.",
            f"Install QRMI's SPANK plugin and name it in {file}, or remove qpu_option.",
        )
    elif using:
        yield Finding.ok("spank", f"sbatch has --qpu, by {file}")
    elif facts.has_qpu_option:
        yield Finding.warning(
            "spank",
            f"sbatch has --qpu, by {file}, but no QPU of {site.path} uses it.",
            "Set qpu_option = true for the QPUs that the plugin acquires, or remove the plugin.",
        )


CHECKS: tuple[Check, ...] = (
    _check_version,
    _check_clock,
    _check_gres,
    _check_licences,
    _check_exclusion,
    _check_admission,
    _check_partitions,
    check_access,
    _check_spank,
)


def _with(site: SitePolicy, key: str) -> Iterable[QPUPolicy]:
    return (policy for policy in site.qpus.values() if getattr(policy, key))


def _total(facts: SlurmFacts, policy: QPUPolicy) -> int | None:
    """Return the total count of a QPU's licence; `None` if it has none."""
    if policy.licence is None:
        return None
    for name, total in facts.licences.items():
        if policy.licence in (name, name.partition("@")[0]):
            return total
    return 0


def _refused(check: str, error: RequestError) -> Finding:
    """Turn the refusal of a request into a finding: its last sentence is the remedy."""
    problem, _, remedy = str(error).rpartition(". Correct ")
    return Finding.error(check, f"{problem}.", f"Correct {remedy}")
