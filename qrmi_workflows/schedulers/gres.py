"""Slurm's generic resources (GRES) and licences: which the nodes offer, and which a job holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import QPURequest

__all__ = [
    "JobGrants",
    "gres_of_job",
    "gres_of_node",
    "make_grants",
    "multiply",
    "offered_gres",
    "require_gres",
    "require_one_node",
    "units_of",
]


def offered_gres(sinfo_output: str) -> dict[str, int]:
    """Parse `sinfo --noheader --format=%G`: each GRES, and the highest count on any node.

    A GRES with types can be requested without one, too, and Slurm chooses the type then.
    `qpu:ibm_fez:1(S:0),qpu:FRESNEL:1` gives `{"qpu:ibm_fez": 1, "qpu:FRESNEL": 1, "qpu": 2}`.
    """
    found: dict[str, int] = {}
    for line in re.sub(r"\([^)]*\)", "", sinfo_output).split():
        for name, count in gres_of_node(line).items():
            found[name] = max(found.get(name, 0), count)
    return found


def gres_of_node(gres: str) -> dict[str, int]:
    """Parse the GRES of one node, as Slurm writes them; those with types count without, too."""
    found: dict[str, int] = {}
    for entry in filter(None, re.sub(r"\([^)]*\)", "", gres).split(",")):
        name, _, count = entry.rpartition(":")
        if not count[:1].isdigit():
            name, count = entry, "1"
        # A count with a suffix (4G) is not a count of QPUs; it only shows that the GRES exists.
        number = int(count) if count.isdigit() else 1
        for each in {name, name.partition(":")[0]}:
            found[each] = found.get(each, 0) + number
    return found


def require_gres(request: QPURequest, site: SitePolicy, offered: Mapping[str, int]) -> None:
    """Refuse a QPU whose GRES no node has, or not as often; sbatch's message names no numbers.

    Raises:
        RequestError: No node has that many units of it.
    """
    policy = site.qpu(request.qpu)
    if policy.gres is None:
        return
    most = _most(policy, offered)
    if most is None:
        raise RequestError(
            f"QPU {policy.name!r}: no node of this Slurm has GRES {policy.gres!r}, which the site "
            f"policy sets for it; the nodes have: {', '.join(sorted(offered)) or 'none'}. Correct "
            f"`gres` in {site.place(policy.name, 'gres')}, or ask your administrators for the GRES."
        )
    if request.count > most:
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: no node of this Slurm has more than "
            f"{most} of GRES {policy.gres!r}. Ask for qpu={most} or fewer."
        )


def require_one_node(
    requests: Sequence[QPURequest], site: SitePolicy, nodes: Iterable[str]
) -> None:
    """Refuse QPUs whose GRES no node has together: a job has its GRES on each of its nodes.

    Args:
        requests: The requests; some node has the GRES of each.
        site: The site policy.
        nodes: The GRES of each kind of node, as `sinfo` prints them.

    Raises:
        RequestError: No node has all of them.
    """
    wanted: dict[str, int] = {}
    for request in requests:
        if (gres := site.qpu(request.qpu).gres) is not None:
            wanted[gres] = wanted.get(gres, 0) + request.count
    if not wanted:
        return
    for node in nodes:
        offered = {name.lower(): count for name, count in gres_of_node(node).items()}
        if all(offered.get(gres.lower(), 0) >= count for gres, count in wanted.items()):
            return
    names = " and ".join(repr(request.qpu) for request in requests)
    units = ", ".join(f"{gres}:{count}" for gres, count in wanted.items())
    raise RequestError(
        f"QPUs {names}: no node of this Slurm has GRES {units} together, as one job needs them. "
        "Use them in jobs of their own."
    )


def units_of(policy: QPUPolicy, offered: Mapping[str, int]) -> int | None:
    """Return how many units of a QPU a job can request; `None` if nothing counts them."""
    if policy.exclusive is not None:
        return 1 if policy.exclusive else policy.lanes
    return _most(policy, offered)


def _most(policy: QPUPolicy, offered: Mapping[str, int]) -> int | None:
    gres = (policy.gres or "").lower()
    return max((count for name, count in offered.items() if name.lower() == gres), default=None)


def gres_of_job(scontrol_output: str) -> Mapping[str, str]:
    """Parse a job's state, GRES and licences from `scontrol show job ID`.

    Slurm 22.05 writes `TresPerNode=gres:qpu:ibm_fez:1`, later versions `gres/qpu:ibm_fez:1`.
    """
    pairs = dict(word.partition("=")[::2] for word in scontrol_output.split() if "=" in word)
    gres = re.sub(r"(^|,)gres[:/]", r"\1", pairs.get("TresPerNode", ""))
    return {
        "state": pairs.get("JobState", "UNKNOWN"),
        "gres": gres,
        "licences": pairs.get("Licenses", "").replace("(null)", ""),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobGrants:
    """What Slurm has granted to a job, in lower case and without counts.

    Attributes:
        gres: Its GRES (`qpu:ibm_fez`); without a type (`qpu`) if the site's have none.
        licences: Its licences (`qpu_ibm_fez`).
        counts: How many units of each it has, of GRES on all of its nodes; 1 of those not listed.
    """

    gres: frozenset[str]
    licences: frozenset[str]
    counts: Mapping[tuple[Literal["gres", "licence"], str], int] = field(default_factory=dict)

    def hold(self, policy: QPUPolicy) -> bool:
        """Return whether they are all that the site policy requires of a job that uses the QPU."""
        gres, licence = (policy.gres or "").lower(), (policy.licence or "").lower()
        # A GRES without a type is that of a site with one QPU, in the policy or on the nodes.
        has_gres = any(f"{gres}:".startswith(f"{held}:") for held in self.gres) or any(
            held.startswith(f"{gres}:") for held in self.gres
        )
        # A licence of another server is written `NAME@SERVER`, in the policy or by Slurm alone.
        licences = self.licences | {held.partition("@")[0] for held in self.licences}
        return (not gres or has_gres) and (not licence or licence in licences)

    def units(self, policy: QPUPolicy) -> int:
        """Return how many units of a QPU the job holds, if it holds it."""
        wanted = {"gres": policy.gres, "licence": policy.licence}
        counted = [
            count
            for (kind, held), count in self.counts.items()
            if (name := wanted[kind]) and re.match(rf"{re.escape(name)}(?:[:@]|$)", held, re.I)
        ]
        return min(counted, default=1)


def make_grants(gres: Iterable[str], licences: Iterable[str]) -> JobGrants:
    """Return what a job holds that was granted these lists of GRES and of licences."""
    of_gres, of_licences = _counts_of(gres, ","), _counts_of(licences, "[,;|]")
    counts: dict[tuple[Literal["gres", "licence"], str], int] = {}
    counts |= {("gres", name): count for name, count in of_gres.items()}
    counts |= {("licence", name): count for name, count in of_licences.items()}
    return JobGrants(gres=frozenset(of_gres), licences=frozenset(of_licences), counts=counts)


def multiply(gres: str, times: int) -> str:
    """Return a list of GRES with each count so many times: `qpu:a:2` for `qpu:a` on two nodes."""
    counts = _counts_of([gres], ",")
    return ",".join(f"{name}:{count * times}" for name, count in counts.items())


def _counts_of(lists: Iterable[str], separator: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    bare = [re.sub(r"\([^)]*\)", "", each) for each in lists]  # without sockets, `(S:0-1)`
    for entry in (entry for each in bare for entry in re.split(separator, each)):
        name, _, count = entry.rpartition(":")
        if not count[:1].isdigit():
            name, count = entry, "1"
        if name and count != "0":
            number = int(count) if count.isdigit() else 1
            counts[name.lower()] = counts.get(name.lower(), 0) + number
    return counts
