"""Slurm's generic resources (GRES) and licences: which the nodes offer, and which a job holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest

__all__ = [
    "JobGrants",
    "grants_of_job",
    "gres_of_job",
    "offered_gres",
    "require_count",
    "require_gres",
    "units_of",
]


def offered_gres(sinfo_output: str) -> dict[str, int]:
    """Parse `sinfo --noheader --format=%G`: each GRES, and the highest count on any node.

    `qpu:ibm_fez:1(S:0),gpu:2` gives `{"qpu:ibm_fez": 1, "gpu": 2}`.
    """
    found: dict[str, int] = {}
    for entry in re.split(r"[,\s]+", re.sub(r"\([^)]*\)", "", sinfo_output)):
        name, _, count = entry.rpartition(":")
        if not count[:1].isdigit():
            name, count = entry, "1"
        # A count with a suffix (4G) is not a count of QPUs; it only shows that the GRES exists.
        found[name] = max(found.get(name, 0), int(count) if count.isdigit() else 1)
    found.pop("", None)
    return found


def require_gres(policy: QPUPolicy, offered: Iterable[str]) -> None:
    """Refuse a QPU whose GRES no node has.

    Raises:
        RequestError: No node has it.
    """
    gres, known = policy.gres, set(offered)
    if gres is not None and gres.lower() not in {name.lower() for name in known}:
        raise RequestError(
            f"QPU {policy.name!r}: no node of this Slurm has GRES {gres!r}, which the site policy "
            f"sets for it; the nodes have: {', '.join(sorted(known - {'(null)'})) or 'none'}. "
            "Correct `gres` in site.toml, or ask your administrators for the GRES."
        )


def units_of(policy: QPUPolicy, offered: Mapping[str, int]) -> int | None:
    """Return how many units of a QPU one node offers; `None` if no GRES counts them."""
    gres = (policy.gres or "").lower()
    return max((count for name, count in offered.items() if name.lower() == gres), default=None)


def require_count(request: QPURequest, policy: QPUPolicy, offered: Mapping[str, int]) -> None:
    """Refuse more units of a QPU than any node has; sbatch's own message names no numbers.

    Raises:
        RequestError: No node has that many.
    """
    most = units_of(policy, offered)
    if most is not None and request.count > most:
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: no node of this Slurm has more than "
            f"{most} of GRES {policy.gres!r}. Ask for qpu={most} or fewer."
        )


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
    """

    gres: frozenset[str]
    licences: frozenset[str]

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


def grants_of_job(scontrol_output: str) -> JobGrants | None:
    """Parse what a job holds from `scontrol --details show job ID`; `None` if it shows no job.

    A heterogeneous job is shown with all its components, which hold their grants together.
    """
    if not re.search(r"^JobId=", scontrol_output, re.MULTILINE):
        return None
    allocated = re.findall(r"^\s+JOB_GRES=(\S+)", scontrol_output, re.MULTILINE)
    requested = re.findall(r"^\s+TresPer\w+=(\S+)", scontrol_output, re.MULTILINE)
    # Without a request there is no allocation, and for one without a type, Slurm chose the type.
    gres = allocated or [re.sub(r"(^|,)gres[:/]", r"\1", each) for each in requested]
    licences = _licences(scontrol_output)
    return JobGrants(gres=_names(gres, ","), licences=_names(licences, "[,;|]"))


def _licences(scontrol_output: str) -> list[str]:
    """Return a job's licences; of alternatives (`a|b`), Slurm 26.05 shows which was allocated."""
    line = re.compile(r"^\s+OverSubscribe=.* Licenses=(\S+)(?: LicensesAlloc=(\S+))?", re.MULTILINE)
    found = [(match[1], match[2]) for match in line.finditer(scontrol_output)]
    return [asked if allocated in (None, "(null)") else allocated for asked, allocated in found]


def _names(lists: Iterable[str], separator: str) -> frozenset[str]:
    """Return the names of `NAME[:COUNT]` in lists, without those of which there are none."""
    names = set()
    bare = [re.sub(r"\([^)]*\)", "", each) for each in lists]  # without sockets, `(S:0-1)`
    for entry in (entry for each in bare for entry in re.split(separator, each)):
        name, _, count = entry.rpartition(":")
        if not count[:1].isdigit():
            name, count = entry, "1"
        if name and count != "0":
            names.add(name.lower())
    return frozenset(names)
