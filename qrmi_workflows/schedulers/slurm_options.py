"""Slurm: the sbatch options that request a QPU, and users' options that would override them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest

__all__ = ["qpu_options", "refuse_options"]


def qpu_options(request: QPURequest, policy: QPUPolicy) -> list[str]:
    """Render the sbatch options that request a QPU as the site grants it.

    Returns:
        One string for each option: `["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]`.
    """
    options = []
    if policy.all_partitions:
        options.append(f"--partition={','.join(policy.all_partitions)}")
    if policy.gres:
        options.append(f"--gres={policy.gres}:{request.count}")
    if policy.licence:
        options.append(f"--licenses={policy.licence}:{request.count}")
    if policy.qpu_option:
        options.append(f"--qpu={request.qpu}")
    return options


def refuse_options(options: str, names: Iterable[str], *, where: str) -> None:
    """Refuse sbatch options that a request for a QPU sets: sbatch uses the last of repeated ones.

    Args:
        options: The user's options, on a command line or as directives.
        names: The names of options to refuse, without dashes.
        where: The place that the options were read from, for the message.

    Raises:
        RequestError: One of the names is among the options.
    """
    for name in names:
        if re.search(rf"(?:^|\s)--{name}(?:[=\s]|$)", options):
            raise RequestError(
                f"{where}: --{name} would override the request for a QPU, which sets it. "
                f"Remove --{name}."
            )
