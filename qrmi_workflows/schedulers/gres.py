"""Slurm's generic resources (GRES): which QPUs the nodes have, and how many units of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError, UnknownQPUError
from qrmi_workflows.schedulers.base import QPURequest

__all__ = ["gres_of_job", "offered_gres", "require_count", "require_gres", "units_of"]


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
        UnknownQPUError: No node offers it.
    """
    gres, known = policy.gres, set(offered)
    if gres is not None and gres.lower() not in {name.lower() for name in known}:
        names = {name.partition(":")[2] for name in known if name.startswith("qpu:")}
        raise UnknownQPUError(
            policy.name,
            names,
            f"on this Slurm: no node has GRES {gres!r}",
            "Ask for one of those, or ask your administrators for the GRES.",
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
    gres = re.sub(r"^gres[:/]", "", pairs.get("TresPerNode", ""))
    return {
        "state": pairs.get("JobState", "UNKNOWN"),
        "gres": gres,
        "licences": pairs.get("Licenses", "").replace("(null)", ""),
    }
