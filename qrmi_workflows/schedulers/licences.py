"""Slurm's licences: which the cluster has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest

__all__ = ["offered_licences", "require_licence", "require_licences"]


def offered_licences(scontrol_output: str) -> dict[str, int]:
    """Parse `scontrol --oneliner show licenses`: each licence and its total count."""
    pairs = re.findall(r"^LicenseName=(\S+)\s.*?\bTotal=(\d+)", scontrol_output, re.MULTILINE)
    return {name: int(total) for name, total in pairs}


def require_licence(request: QPURequest, site: SitePolicy, offered: Mapping[str, int]) -> None:
    """Refuse a QPU whose licence Slurm lacks, or has fewer of; sbatch's message names neither.

    Raises:
        RequestError: Slurm has not that many of the licence.
    """
    policy = site.qpu(request.qpu)
    known = _known(offered)
    if policy.licence is None:
        return
    if policy.licence not in known:
        raise RequestError(
            f"QPU {policy.name!r}: this Slurm has no licence {policy.licence!r}, which the site "
            f"policy sets for it; it has: {', '.join(sorted(offered)) or 'none'}. Correct "
            f"`licence` in {site.place(policy.name, 'licence')}, or add "
            f"`Licenses={policy.licence}:1` to slurm.conf."
        )
    if request.count > (most := known[policy.licence]):
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: this Slurm has {most} of licence "
            f"{policy.licence!r}. Ask for qpu={most} or fewer."
        )


def require_licences(
    requests: Sequence[QPURequest], site: SitePolicy, offered: Mapping[str, int]
) -> None:
    """Refuse QPUs that share a licence of which Slurm has fewer than they need together.

    Raises:
        RequestError: Slurm has fewer.
    """
    wanted: dict[str, list[QPURequest]] = {}
    for request in requests:
        if (licence := site.qpu(request.qpu).licence) is not None:
            wanted.setdefault(licence, []).append(request)
    known = _known(offered)
    for licence, sharing in wanted.items():
        count = sum(request.count for request in sharing)
        if count > known.get(licence, 0):
            names = " and ".join(repr(request.qpu) for request in sharing)
            raise RequestError(
                f"QPUs {names}: one job needs {count} of licence {licence!r} for them, and this "
                f"Slurm has {known.get(licence, 0)}. Use them in jobs of their own."
            )


def _known(offered: Mapping[str, int]) -> dict[str, int]:
    # A licence of another server is named `NAME@SERVER`, and a policy may leave the server out.
    return {name.partition("@")[0]: count for name, count in offered.items()} | dict(offered)
