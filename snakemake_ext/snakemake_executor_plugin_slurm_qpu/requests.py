"""From the resources of a Snakemake job to a request for a QPU, refused early when it is wrong.

What a rule may say: `qpu` (how many of the scheduler's units of the QPU; 0 is a rule without one,
so that a profile can set it for all rules) and `qpu_name`. A group of jobs shares one lease, so
all of it must mean the same QPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from snakemake.common.tbdstring import TBDString
from snakemake_interface_common.exceptions import WorkflowError

from qrmi_workflows.config import SitePolicy, load_site_policy
from qrmi_workflows.errors import QPUError, RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.slurm import check_offered, qpu_options, refuse_options

__all__ = ["QPURequests"]

_SET_BY_THE_REQUEST = ("gres", "licenses", "qpu")


class QPURequests:
    """The requests of one workflow at this site; each is checked with Slurm once."""

    def __init__(self) -> None:
        self._met: set[QPURequest] = set()

    @cached_property
    def site(self) -> SitePolicy:
        """The site policy, read when the first job asks for a QPU."""
        return load_site_policy()

    def find(self, job: Any) -> QPURequest | None:
        """Return the checked request of a job or group of jobs, or `None` when it has none.

        Raises:
            WorkflowError: The request is malformed, or cannot be met here.
        """
        asking = [member for member in _members(job) if _asks(member)]
        if not asking:
            return None
        try:
            request = self._merge(job, asking)
            if request not in self._met:
                check_offered(request, self.site)
                self._met.add(request)
        except QPUError as error:
            raise WorkflowError(str(error), rule=asking[0].rule) from error
        return request

    def check_workflow(self, dag: Any) -> None:
        """Refuse every request of a workflow that cannot be met, before any job runs.

        Raises:
            WorkflowError: One cannot be met, or would run without Slurm.
        """
        for job in {dag.get_job_group(job) or job for job in dag.needrun_jobs()}:
            if self.find(job) is not None and job.is_local:
                raise _local_error(job)

    def options(self, request: QPURequest, *, partition: bool) -> list[str]:
        """Render the sbatch options of a request.

        Args:
            request: What is asked for.
            partition: Whether to name the site's partition for it, when the site has one.
        """
        options = qpu_options(request, self.site.qpu(request.qpu))
        return [o for o in options if partition or not o.startswith("--partition=")]

    def _merge(self, job: Any, asking: Iterable[Any]) -> QPURequest:
        requests = {_read(member, self.site) for member in asking}
        names = sorted({request.qpu for request in requests})
        if len(names) > 1:
            raise RequestError(
                f"group {job.groupid!r} asks for the QPUs {', '.join(names)}; one group is one "
                "Slurm job and shares one lease, so one QPU is allowed. Put the rules of each QPU "
                "into a group of their own."
            )
        return max(requests, key=lambda request: request.count)


def _members(job: Any) -> list[Any]:
    return list(job.jobs) if job.is_group() else [job]


def _asks(job: Any) -> bool:
    count = job.resources.get("qpu", 0)
    return not isinstance(count, TBDString) and (isinstance(count, bool) or count != 0)


def _read(job: Any, site: SitePolicy) -> QPURequest:
    resources = job.resources
    if gres := resources.get("gres"):
        raise RequestError(
            f"rule {job.rule.name!r} asks for gres={gres!r} and for qpu={resources.qpu!r}; sbatch "
            "keeps only one --gres, so with `qpu` no `gres` is allowed. Remove `gres` (GPUs: use "
            "`gpu`)."
        )
    extra = resources.get("slurm_extra") or ""
    where = f"slurm_extra of rule {job.rule.name!r}"
    refuse_options(extra, _SET_BY_THE_REQUEST, where=where)
    if re.search(r"(?:^|\s)-L", extra):
        raise RequestError(
            f"{where}: -L is set by the request for a QPU and would override it. Remove -L."
        )
    return QPURequest(qpu=_name(job, site), count=resources.qpu)


def _name(job: Any, site: SitePolicy) -> str:
    name = job.resources.get("qpu_name")
    if name is None and len(site.qpus) == 1:
        return next(iter(site.qpus))
    if not isinstance(name, str) or isinstance(name, TBDString):
        raise RequestError(
            f"rule {job.rule.name!r} asks for qpu={job.resources.qpu!r} with qpu_name={name!r}; "
            f"allowed: {', '.join(sorted(site.qpus))}. Add qpu_name=\"…\" to its resources."
        )
    return site.qpu(name).name


def _local_error(job: Any) -> WorkflowError:
    local = next(member for member in _members(job) if member.is_local)
    if job.is_group():
        return WorkflowError(
            f"rule {local.rule.name!r} is a localrule in group {job.groupid!r}, which asks for a "
            "QPU: Snakemake would run the whole group here, without Slurm and without a lease. "
            "Take the rule out of `localrules`, or out of the group.",
            rule=local.rule,
        )
    return WorkflowError(
        f"rule {local.rule.name!r} is a localrule and asks for a QPU: it would run here, without "
        "Slurm and without a lease. Take it out of `localrules`, or remove `qpu`.",
        rule=local.rule,
    )
