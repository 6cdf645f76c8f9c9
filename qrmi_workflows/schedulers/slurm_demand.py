"""Slurm: how many jobs wait for each QPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import JobGrants, make_grants

__all__ = ["parse_waiting_jobs", "waiting_jobs"]

# For these, no QPU is to blame: the job would not start if it were free.
_NOTHING = {"n/a", "null", "(null)"}
_OTHER_REASONS = re.compile(r"Dependency|JobHeld|BeginTime|JobArrayTaskLimit")


def waiting_jobs(site: SitePolicy, *, timeout: float) -> dict[str, int] | None:
    """Return how many pending jobs ask for each QPU, by name; `None` if squeue does not say."""
    if not any(policy.gres or policy.licence for policy in site.qpus.values()):
        return None
    argv = ["squeue", "--all", "--noheader", "--states=PENDING", "--format=%b|%W|%r"]
    with suppress(SchedulerError):
        return parse_waiting_jobs(site, require_success(run_command(argv, timeout=timeout)).stdout)
    return None


def parse_waiting_jobs(site: SitePolicy, squeue_output: str) -> dict[str, int]:
    """Parse `squeue --format=%b|%W|%r`: the GRES, the licences and the reason of each job.

    A job array is one job, however many of its tasks are pending.
    """
    counted = {policy.name: 0 for policy in site.qpus.values() if policy.gres or policy.licence}
    for asked in _requests(squeue_output):
        for name in counted:
            if asked.hold(site.qpus[name]):
                counted[name] += 1
    return counted


def _requests(squeue_output: str) -> Iterator[JobGrants]:
    for line in squeue_output.splitlines():
        # Alternatives among licences (`a|b`, Slurm 26.05) have the separator, too.
        gres, _, rest = line.strip().partition("|")
        licences, _, reason = rest.rpartition("|")
        if _OTHER_REASONS.search(reason):
            continue
        gres = re.sub(r"(^|,)gres[:/]", r"\1", gres)
        alternatives = re.split("[,;|]", licences)
        asked = make_grants(
            (each for each in gres.split(",") if each.lower() not in _NOTHING),
            (each for each in alternatives if each.lower() not in _NOTHING),
        )
        if asked.gres or asked.licences:
            yield asked
