"""Slurm: how a request for a QPU becomes options of sbatch, and what Slurm says of jobs.

Argv builders and parsers are pure; only the functions at the end run Slurm's commands. GRES are
counted per node, so a GRES alone lets as many jobs hold one QPU as there are nodes that list it:
the licence excludes across the cluster. Supported: Slurm 22.05 and later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qrmi_workflows.config import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError, UnknownQPUError
from qrmi_workflows.schedulers.base import QPURequest, run_command

__all__ = [
    "check_offered",
    "gres_of_job",
    "jobs_of_squeue",
    "offered_gres",
    "qpu_options",
    "refuse_options",
    "require_gres",
]

_GRES_OF_NODE = re.compile(r"([^,(\s]+)(?:\([^)]*\))?")


def qpu_options(request: QPURequest, policy: QPUPolicy) -> list[str]:
    """Render the sbatch options that ask for a QPU, as the site grants it.

    Returns:
        Whole options, one a string: `["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]`.
    """
    options = []
    if policy.partition:
        options.append(f"--partition={policy.partition}")
    if policy.gres:
        options.append(f"--gres={policy.gres}:{request.count}")
    if policy.licence:
        options.append(f"--licenses={policy.licence}:{request.count}")
    if policy.qpu_option:
        options.append(f"--qpu={request.qpu}")
    return options


def refuse_options(options: str, names: Iterable[str], *, where: str) -> None:
    """Refuse sbatch options that a request for a QPU sets itself: Slurm lets the last one win.

    Raises:
        RequestError: One of them is there.
    """
    for name in names:
        if re.search(rf"(?:^|\s)--{name}(?:[=\s]|$)", options):
            raise RequestError(
                f"{where}: --{name} is set by the request for a QPU and would override it. "
                f"Remove --{name}."
            )


def offered_gres(sinfo_output: str) -> set[str]:
    """Parse `sinfo --noheader --format=%G`: the GRES of all nodes, without counts.

    `qpu:ibm_fez:1(S:0),gpu:2` gives `{"qpu:ibm_fez", "gpu"}`.
    """
    found = set()
    for match in _GRES_OF_NODE.finditer(sinfo_output):
        parts = match[1].split(":")
        found.add(":".join(parts[:-1] if parts[-1][:1].isdigit() else parts))
    return found - {"", "null"}


def require_gres(policy: QPUPolicy, offered: set[str]) -> None:
    """Refuse a QPU whose GRES no node has.

    Raises:
        UnknownQPUError: No node offers it.
    """
    wanted = policy.gres
    if wanted is not None and wanted.lower() not in {gres.lower() for gres in offered}:
        names = {gres.partition(":")[2] for gres in offered if gres.startswith("qpu:")}
        raise UnknownQPUError(
            policy.name,
            names,
            f"on this Slurm: no node has GRES {wanted!r}",
            "Ask for one of those, or ask your administrators for the GRES.",
        )


def check_offered(request: QPURequest, site: SitePolicy) -> QPUPolicy:
    """Ask Slurm whether it offers the requested QPU, before anything is submitted.

    Raises:
        UnknownQPUError: The site policy, or Slurm, does not have it.
        SchedulerError: Slurm does not answer.
    """
    policy = site.qpu(request.qpu)
    argv = ["sinfo", "--noheader", "--format=%G"]
    done = run_command(argv)
    if done.returncode != 0:
        raise SchedulerError(
            f"sinfo failed: {done.stderr.strip()}. Is this Slurm running?",
            done.argv,
            done.returncode,
            done.stderr,
            retryable=True,
        )
    require_gres(policy, offered_gres(done.stdout))
    return policy


def jobs_of_squeue(output: str) -> dict[str, str]:
    """Parse `squeue --noheader --format=%i|%T`: job id to state (`RUNNING`)."""
    rows = (line.split("|") for line in output.splitlines() if "|" in line)
    return {row[0].strip(): row[1].strip() for row in rows}


def gres_of_job(scontrol_output: str) -> Mapping[str, str]:
    """Parse `scontrol show job ID`: its state, GRES and licences.

    Slurm 22.05 writes `TresPerNode=gres:qpu:ibm_fez:1`, later ones `gres/qpu:ibm_fez:1`.
    """
    pairs = dict(word.partition("=")[::2] for word in scontrol_output.split() if "=" in word)
    gres = re.sub(r"^gres[:/]", "", pairs.get("TresPerNode", ""))
    return {
        "state": pairs.get("JobState", "UNKNOWN"),
        "gres": gres,
        "licences": pairs.get("Licenses", "").replace("(null)", ""),
    }
