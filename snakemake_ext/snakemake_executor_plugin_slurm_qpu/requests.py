"""From the resources of a Snakemake job to a request for a QPU, refused early when it is wrong.

What a rule may say: `qpu` (how many of the scheduler's units of the QPU, one lane each where the
site counts lanes; 0 is a rule without a QPU, so that a profile can set it for all rules),
`qpu_name`, and `qpu_exclusive` (all units). A group of jobs shares one lease, so all of it must
mean the same QPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from qrmi_workflows.config.site import SitePolicy, load_site_policy
from qrmi_workflows.errors import QPUError, RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import offered_gres, require_count, require_gres, units_of
from qrmi_workflows.schedulers.slurm import qpu_options, refuse_options
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.nested import require_readable

__all__ = ["NOT_YET_KNOWN", "QPURequestError", "QPURequests"]

NOT_YET_KNOWN = "<TBD>"
"""How Snakemake writes a value that it can evaluate only later, or only in the job."""

_SET_BY_THE_REQUEST = ("gres", "licenses", "qpu")


class QPURequests:
    """The requests of one workflow at this site; each is checked with Slurm once."""

    def __init__(self) -> None:
        self._met: set[QPURequest] = set()

    @cached_property
    def site(self) -> SitePolicy:
        """The site policy, read when the first job asks for a QPU."""
        return load_site_policy()

    @cached_property
    def _nodes(self) -> list[str]:
        """What the nodes have: `GRES|CPUs`."""
        argv = ["sinfo", "--noheader", "--exact", "--format=%G|%c"]
        return require_success(run_command(argv)).stdout.splitlines()

    @cached_property
    def _offered(self) -> dict[str, int]:
        return offered_gres("\n".join(node.partition("|")[0] for node in self._nodes))

    def find(self, job: Any) -> QPURequest | None:
        """Return the checked request of a job or group of jobs, or `None` when it has none.

        Raises:
            QPURequestError: The request is malformed, or cannot be met here.
        """
        asking = [member for member in _members(job) if _asks(member)]
        if not asking:
            return None
        try:
            request = self._merge(job, asking)
            for member in asking:
                self._require_cpus(member)
            if request not in self._met:
                policy = self.site.qpu(request.qpu)
                require_gres(policy, self._offered)
                require_count(request, policy, self._offered)
                self._met.add(request)
        except QPUError as error:
            raise QPURequestError(f"rule {asking[0].rule.name!r}: {error}") from error
        return request

    def check_workflow(self, dag: Any) -> None:
        """Refuse every request of a workflow that cannot be met, before any job runs.

        Raises:
            QPURequestError: One cannot be met, or would run without Slurm.
        """
        for job in {dag.get_job_group(job) or job for job in dag.needrun_jobs()}:
            request = self._find_early(job)
            if request is not None and job.is_local:
                raise QPURequestError(
                    f"rule {job.name!r} is a localrule and asks for qpu={request.count}: it would "
                    "run here, without Slurm and without a lease. Take it out of `localrules`, or "
                    "remove `qpu`."
                )
            if request is not None and job.is_group():
                _name_siblings(job, request.qpu)
                self._require_cpus_of_group(job)
            if request is not None and (job.is_group() or not job.is_shell):
                require_readable(job)

    def _find_early(self, job: Any) -> QPURequest | None:
        """Find a request before its job is ready; `None` when that depends on files to be made."""
        try:
            return None if any(_depends(member) for member in _members(job)) else self.find(job)
        except QPURequestError:
            raise
        except Exception:
            return None  # a function of the user's, which may fail without its input

    def options(self, request: QPURequest, *, partition: bool) -> list[str]:
        """Render the sbatch options of a request.

        Args:
            request: What is asked for.
            partition: Whether to name the site's partition for it, when the site has one.
        """
        options = qpu_options(request, self.site.qpu(request.qpu))
        return [o for o in options if partition or not o.startswith("--partition=")]

    def lanes(self, request: QPURequest) -> int | None:
        """Return how many lanes a request is for; `None` when the site's units are no lanes."""
        units = units_of(self.site.qpu(request.qpu), self._offered)
        return request.count if units is not None and units > 1 else None

    def _merge(self, job: Any, asking: Iterable[Any]) -> QPURequest:
        requests = {self._read(member) for member in asking}
        names = sorted({request.qpu for request in requests})
        if len(names) > 1:
            raise RequestError(
                f"group {job.groupid!r} asks for the QPUs {', '.join(names)}; one group is one "
                "Slurm job and shares one lease, so one QPU is allowed. Put the rules of each QPU "
                "into a group of their own."
            )
        return max(requests, key=lambda request: request.count)

    def _read(self, job: Any) -> QPURequest:
        resources = job.resources
        _refuse_conflicts(resources)
        name = self._name(resources)
        request = QPURequest(qpu=name, count=resources.qpu)
        if not resources.get("qpu_exclusive"):
            return request
        units = units_of(self.site.qpu(name), self._offered)
        return replace(request, count=units or request.count)

    def _require_cpus_of_group(self, group: Any) -> None:
        try:
            self._require_cpus(group)
        except RequestError as error:
            raise QPURequestError(f"group {group.groupid!r}: {error}") from error
        except Exception:
            return  # as in `_find_early`

    def _require_cpus(self, job: Any) -> None:
        """Refuse more CPUs than any node has: Slurm may accept the job and never start it."""
        asked = job.resources.get("cpus_per_task") or job.threads
        counts = [node.rpartition("|")[2] for node in self._nodes]
        most = max((int(count) for count in counts if count.isdigit()), default=None)
        if isinstance(asked, int) and most is not None and asked > most:
            raise RequestError(
                f"it asks for {asked} CPUs, and no node of this Slurm has more than {most}. Lower "
                f"its `threads`, or cap those of all rules with --max-threads {most}."
            )

    def _name(self, resources: Any) -> str:
        name, site = resources.get("qpu_name"), self.site
        if name is None and len(site.qpus) == 1:
            return next(iter(site.qpus))
        if not isinstance(name, str):
            raise RequestError(
                f"it asks for qpu={resources.qpu!r} with qpu_name={name!r}; allowed: "
                f'{", ".join(sorted(site.qpus))}. Add qpu_name="…" to its resources.'
            )
        return site.qpu(name).name


def _members(job: Any) -> list[Any]:
    return sorted(job.jobs, key=str) if job.is_group() else [job]


def _asks(job: Any) -> bool:
    count = None if job.is_norun else job.resources.get("qpu")
    return count is not None and (isinstance(count, bool) or count != 0)


def _depends(job: Any) -> bool:
    return NOT_YET_KNOWN in (job.resources.get(name) for name in ("qpu", "qpu_name"))


def _refuse_conflicts(resources: Any) -> None:
    if gres := resources.get("gres"):
        raise RequestError(
            f"it asks for gres={gres!r} and for qpu={resources.qpu!r}; sbatch keeps only one "
            "--gres, so with `qpu` no `gres` is allowed. Remove `gres` (GPUs: use `gpu`)."
        )
    extra = resources.get("slurm_extra") or ""
    refuse_options(extra, _SET_BY_THE_REQUEST, where=f"slurm_extra={extra!r}")
    if re.search(r"(?:^|\s)-L", extra):
        raise RequestError(
            f"slurm_extra={extra!r}: -L is set by the request for a QPU and would override it. "
            "Remove -L."
        )


def _name_siblings(group: Any, qpu: str) -> None:
    """Let the classical jobs of a group name its QPU too: Snakemake wants equal strings there."""
    for job in group.jobs:
        name = job.resources.get("qpu_name")
        if name is None:
            job.add_aux_resource("qpu_name", qpu)
        elif name != qpu:
            raise QPURequestError(
                f"rule {job.rule.name!r} of group {group.groupid!r} has qpu_name={name!r}, and the "
                f"group asks for QPU {qpu!r}; within a group one qpu_name is allowed. Set "
                f'qpu_name="{qpu}" for that rule, or take it out of the group.'
            )
