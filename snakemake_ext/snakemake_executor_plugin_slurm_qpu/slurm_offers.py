"""What this site offers: its policy, its QPU definitions, and the GRES and licences of Slurm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.qpus import QPUDefinition, find_config, load_dynamic, load_qpus
from qrmi_workflows.config.site import QPUPolicy, SitePolicy, load_site_policy
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import (
    offered_gres,
    require_gres,
    require_one_node,
    units_of,
)
from qrmi_workflows.schedulers.licences import (
    offered_licences,
    require_licence,
    require_licences,
)

__all__ = ["JobRequest", "SlurmOffers", "real_qpus"]

JobRequest = tuple[QPURequest, ...]
"""What a job asks for: one QPU, or several, of which it holds all or none."""


def real_qpus(request: JobRequest) -> JobRequest:
    """Return the part of a request that Slurm has to grant: not the emulated QPUs."""
    return tuple(each for each in request if not is_emulated(each.qpu))


class SlurmOffers:
    """The offers of one site; Slurm is queried once for the GRES of its nodes."""

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
    def _gres(self) -> list[str]:
        return [node.partition("|")[0] for node in self._nodes]

    @cached_property
    def _offered(self) -> dict[str, int]:
        return offered_gres("\n".join(self._gres))

    @cached_property
    def _licences(self) -> dict[str, int]:
        argv = ["scontrol", "--oneliner", "show", "licenses"]
        return offered_licences(require_success(run_command(argv)).stdout)

    def _require_offered(self, job_request: JobRequest) -> None:
        requests = real_qpus(job_request)
        policies = [self.site.qpu(request.qpu) for request in requests]
        for policy, request in zip(policies, requests, strict=True):
            self._require_defined(policy)
            require_gres(request, self.site, self._offered)
            if policy.licence:
                require_licence(request, self.site, self._licences)
        if len(requests) > 1:
            require_one_node(requests, self.site, self._gres)
            if any(policy.licence for policy in policies):
                require_licences(requests, self.site, self._licences)

    def lanes(self, request: JobRequest) -> int | None:
        """Return the number of lanes of each QPU; `None` if units are not lanes, or they differ."""
        lanes = {self._lanes_of(each) for each in real_qpus(request)}
        return lanes.pop() if len(lanes) == 1 else None

    def _lanes_of(self, request: QPURequest) -> int | None:
        units = units_of(self.site.qpu(request.qpu), self._offered)
        return request.count if units is not None and units > 1 else None

    def at_once(self, rounds: Iterable[Sequence[QPURequest]]) -> QPURequest:
        """Return one request for what the jobs of a stage can use at once.

        Args:
            rounds: Their requests, all for the same QPU; those of one round may run together.
        """
        rounds = list(rounds)
        first, *_ = [request for each in rounds for request in each]
        units = units_of(self.site.qpu(first.qpu), self._offered)
        if units is None:
            return max((r for each in rounds for r in each), key=lambda request: request.count)
        most = max(sum(request.count for request in each) for each in rounds)
        return replace(first, count=min(most, units))

    def _exclusively(self, request: QPURequest) -> QPURequest:
        if is_emulated(request.qpu):
            return request
        units = units_of(self.site.qpu(request.qpu), self._offered)
        return replace(request, count=units or request.count)

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
