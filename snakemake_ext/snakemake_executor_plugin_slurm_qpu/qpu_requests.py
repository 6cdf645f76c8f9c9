"""From the resources of a Snakemake job to a checked request for a QPU.

A rule may set `qpu` (the number of the scheduler's units of the QPU; at sites that count lanes, a
unit is a lane), `qpu_name`, and `qpu_exclusive` (all units). `qpu=0` means no QPU, so that a
profile can set it for all rules. A group of jobs shares one lease, so its rules must all name the
same QPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qrmi_workflows.config.qpus import QPUDefinition, find_config, load_dynamic, load_qpus
from qrmi_workflows.config.site import QPUPolicy, SitePolicy, load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError, RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import offered_gres, require_count, require_gres, units_of
from qrmi_workflows.schedulers.slurm import Slurm, qpu_options, refuse_options
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.quoting import require_parsable_wildcards
from snakemake_executor_plugin_slurm_qpu.stated_resources import (
    require_whole_count,
    stray_resource,
)

__all__ = ["TO_BE_DETERMINED", "QPURequests"]

TO_BE_DETERMINED = "<TBD>"
"""Snakemake's text for a value that it can only evaluate later, or inside the job."""
# The text of `snakemake.common.tbdstring.TBDString` in 9.27.1; not imported, see `__init__.py`.


class QPURequests:
    """The requests of one workflow; Slurm is queried once for the GRES of its nodes."""

    # Needs no lock: the main thread asks for the request of every job before the submitting threads
    # do, so these find it in `_checked`, and the cached properties computed.

    def __init__(self) -> None:
        self._checked: set[QPURequest] = set()
        self._checked_attempts: set[tuple[Any, int]] = set()  # job, attempt

    @cached_property
    def site(self) -> SitePolicy:
        """The site policy, read when the first job asks for a QPU."""
        return load_site_policy()

    @cached_property
    def _definitions(self) -> tuple[Path, Mapping[str, QPUDefinition]] | None:
        """The QPU definitions and their file; `None` if they do not tell which QPUs there are."""
        try:
            path = find_config()
            return None if load_dynamic(path) else (path, load_qpus(path))
        except (ConfigError, OSError):
            return None  # the job, on its node, may be able to; otherwise it reports the error

    def _require_defined(self, policy: QPUPolicy) -> None:
        # Not with --qpu: the site's SPANK plugin acquires the QPU by its own definitions.
        if self._definitions is None or policy.qpu_option:
            return
        path, defined = self._definitions
        if policy.name not in defined:
            raise RequestError(
                f"QPU {policy.name!r}: {path} does not define it, though the site policy "
                f"{self.site.path} offers it; it defines: {', '.join(sorted(defined)) or 'none'}. "
                "Ask for one of those, or ask your administrators for the definition."
            )

    @cached_property
    def _nodes(self) -> list[str]:
        """The GRES and CPUs of each kind of node, as `GRES|CPUs`."""
        # --exact: otherwise sinfo merges nodes that differ, and writes `8+` for their CPUs.
        argv = ["sinfo", "--noheader", "--exact", "--format=%G|%c"]
        return require_success(run_command(argv)).stdout.splitlines()

    @cached_property
    def _offered(self) -> dict[str, int]:
        return offered_gres("\n".join(node.partition("|")[0] for node in self._nodes))

    def request_of(self, job: Any) -> QPURequest | None:
        """Return the checked request of a job, or group of jobs; `None` if it uses no QPU.

        Raises:
            QPURequestError: The request is malformed, or cannot be met at this site.
        """
        members = _sorted_jobs(job)
        requesting = [member for member in members if _requests_qpu(member)]
        self._refuse_strays(members, requesting)
        if not requesting:
            return None
        try:
            request = self._merge(job, requesting)
            for member in requesting:
                self._require_cpus(member)
            if request not in self._checked:
                policy = self.site.qpu(request.qpu)
                self._require_defined(policy)
                require_gres(policy, self._offered)
                require_count(request, policy, self._offered)
                self._checked.add(request)
        except QPUError as error:
            raise QPURequestError(f"rule {requesting[0].rule.name!r}: {error}") from error
        return request

    def _refuse_strays(self, members: Iterable[Any], requesting: Sequence[Any]) -> None:
        """Refuse resources of a QPU that the job would not hold, or not as written."""
        for job in members:
            if (job, job.attempt) in self._checked_attempts:
                continue
            try:
                require_whole_count(job)
                _refuse_stray(job, holds_qpu=bool(requesting), is_requesting=job in requesting)
            except RequestError as error:
                raise QPURequestError(f"rule {job.rule.name!r}: {error}") from error
            self._checked_attempts.add((job, job.attempt))

    def check_workflow(self, dag: Any) -> None:
        """Check the requests of all jobs of a workflow before any of them runs.

        Raises:
            QPURequestError: A request cannot be met, or its job would run without Slurm.
        """
        for job in {dag.get_job_group(job) or job for job in dag.needrun_jobs()}:
            request = self._request_if_known(job)
            if request is not None and job.is_local:
                raise QPURequestError(
                    f"rule {job.name!r} is a localrule and asks for qpu={request.count}: it would "
                    "run here, without Slurm and without a lease. Take it out of `localrules`, or "
                    "remove `qpu`."
                )
            if request is not None and job.is_group():
                self._require_cpus_of_group(job)
            if request is not None and (job.is_group() or not job.is_shell):
                require_parsable_wildcards(job)

    def _request_if_known(self, job: Any) -> QPURequest | None:
        """Return a job's request before the job is ready; `None` if it depends on missing files."""
        try:
            is_known = not any(_is_undetermined(member) for member in jobs_in(job))
            return self.request_of(job) if is_known else None
        except QPURequestError:
            raise
        except Exception:
            # A function in the Snakefile may raise anything while its input files do not exist. The
            # request is checked again when the job is submitted.
            return None

    def sbatch_options(self, request: QPURequest, *, partition: bool) -> list[str]:
        """Render the sbatch options of a request.

        Args:
            request: The request.
            partition: Whether to include the partition that the site sets for the QPU.
        """
        options = qpu_options(request, self.site.qpu(request.qpu))
        return [o for o in options if partition or not o.startswith("--partition=")]

    def lanes(self, request: QPURequest) -> int | None:
        """Return the number of lanes in a request; `None` if the site's units are not lanes."""
        units = units_of(self.site.qpu(request.qpu), self._offered)
        return request.count if units is not None and units > 1 else None

    def _merge(self, job: Any, members: Iterable[Any]) -> QPURequest:
        # Not from the group's own resources, in which snakemake 9.27.1 sums the `qpu` of jobs that
        # may run at the same time (`GroupResources.basic_layered`). They share one lease.
        requests = {self._parse(member) for member in members}
        names = sorted({request.qpu for request in requests})
        if len(names) > 1:
            raise RequestError(
                f"group {job.groupid!r} asks for the QPUs {', '.join(names)}; a group is one Slurm "
                "job with one lease, so it must use only one QPU. Put the rules of each QPU into a "
                "group of their own."
            )
        return max(requests, key=lambda request: request.count)

    def _parse(self, job: Any) -> QPURequest:
        resources = job.resources
        _refuse_conflicting_options(resources)
        name = self._qpu_name(resources)
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
            return  # a function in the Snakefile, as in `_request_if_known`

    def _require_cpus(self, job: Any) -> None:
        # By default (EnforcePartLimits=NO, slurm.conf(5)) Slurm accepts such a job and never starts
        # it.
        requested = job.resources.get("cpus_per_task") or job.threads
        counts = [node.rpartition("|")[2] for node in self._nodes]
        most = max((int(count) for count in counts if count.isdigit()), default=None)
        if isinstance(requested, int) and most is not None and requested > most:
            raise RequestError(
                f"it asks for {requested} CPUs, but no node of this Slurm has more than {most}. "
                f"Lower its `threads`, or cap those of all rules with --max-threads {most}."
            )

    def _qpu_name(self, resources: Any) -> str:
        name, site = resources.get("qpu_name"), self.site
        if name is None and len(site.qpus) == 1:
            return next(iter(site.qpus))
        if not isinstance(name, str):
            raise RequestError(
                f"it asks for qpu={resources.qpu!r} with qpu_name={name!r}; the name must be one "
                f'of: {", ".join(sorted(site.qpus))}. Add qpu_name="…" to its resources.'
            )
        return site.qpu(name).name


def _refuse_stray(job: Any, *, holds_qpu: bool, is_requesting: bool) -> None:
    name, value = (None, None) if is_requesting else stray_resource(job) or (None, None)
    # In a group, a rule without `qpu` runs under the lease of the others, and may name its QPU.
    if name is not None and not (name == "qpu_name" and holds_qpu):
        raise RequestError(
            f"it sets {name}={value!r} but not `qpu`, so its job would not hold the QPU. Add qpu=1 "
            f"to its resources, or remove {name}."
        )


def _sorted_jobs(job: Any) -> list[Any]:
    return sorted(jobs_in(job), key=str)  # a group is a set; messages must name the same rule


def _requests_qpu(job: Any) -> bool:
    count = None if job.is_norun else job.resources.get("qpu")
    # `False` equals 0, but is a mistake that QPURequest refuses.
    return count is not None and (isinstance(count, bool) or count != 0)


def _is_undetermined(job: Any) -> bool:
    return TO_BE_DETERMINED in (job.resources.get(name) for name in ("qpu", "qpu_name"))


def _refuse_conflicting_options(resources: Any) -> None:
    if gres := resources.get("gres"):
        raise RequestError(
            f"it sets both gres={gres!r} and qpu={resources.qpu!r}; sbatch uses only one --gres, "
            "so a rule with `qpu` must not set `gres`. Remove `gres` (GPUs: use `gpu`)."
        )
    extra = resources.get("slurm_extra") or ""
    refuse_options(extra, Slurm.request_options, where=f"slurm_extra={extra!r}")
    if re.search(r"(?:^|\s)-L", extra):
        raise RequestError(
            f"slurm_extra={extra!r}: -L would override the request for a QPU, which sets it. "
            "Remove -L."
        )
