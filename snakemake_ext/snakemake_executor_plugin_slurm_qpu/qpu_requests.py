"""From the resources of a Snakemake job to a checked request for a QPU.

A rule may set `qpu` (the number of the scheduler's units of the QPU; at sites that count lanes, a
unit is a lane), `qpu_name` and conditions (`wishes`), and `qpu_exclusive` (all units). `qpu=0`
means no QPU, so that a profile can set it for all rules. With `qpu_name="ibm_fez+FRESNEL"`, the job
holds both QPUs. A group is one job, so one of its rules must name all of the QPUs that the others
name. Where a rule leaves a choice, that is made when the job is submitted (`choices`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qrmi_workflows.config.variables import STAGE_VARIABLES
from qrmi_workflows.errors import LeaseError, QPUError, RequestError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.fallback_plan import plan_fallback
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.request import require_request
from qrmi_workflows.schedulers.several import compile_requests
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.slurm_options import refuse_options
from snakemake_executor_plugin_slurm_qpu.choices import QPUChoices, set_qpu_name
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.fallbacks import Fallbacks, fallback_of
from snakemake_executor_plugin_slurm_qpu.quoting import require_parsable_wildcards
from snakemake_executor_plugin_slurm_qpu.slurm_offers import JobRequest, SlurmOffers, real_qpus
from snakemake_executor_plugin_slurm_qpu.stated_resources import (
    require_whole_count,
    stated_resources,
    stray_resource,
)
from snakemake_executor_plugin_slurm_qpu.wishes import (
    CONDITIONS,
    Wish,
    is_choice,
    merge_wishes,
    parse_wish,
    refuse_unknown_resources,
)

if TYPE_CHECKING:
    from qrmi_workflows.choice.candidates import Asker

__all__ = ["TO_BE_DETERMINED", "QPURequests"]


TO_BE_DETERMINED = "<TBD>"
"""Snakemake's text for a value that it can only evaluate later, or inside the job."""
# The text of `snakemake.common.tbdstring.TBDString` in 9.27.1; not imported, see `__init__.py`.


class QPURequests(SlurmOffers):
    """The requests of one workflow."""

    # Needs no lock: the main thread asks for the request of every job before the submitting threads
    # do, so these find it in `_checked`, and the cached properties computed.

    def __init__(self) -> None:
        self.fallbacks = Fallbacks()
        self.choices = QPUChoices()
        self._wishes: dict[tuple[Any, int], Wish] = {}  # by job and attempt
        self._checked: set[JobRequest] = set()
        self._possible: set[tuple[Wish, str | None, str | None]] = set()
        self._allowed: set[tuple[QPURequest, str | None, str | None]] = set()
        self._checked_attempts: set[tuple[Any, int]] = set()  # job, attempt

    def uses_qpu(self, job: Any) -> bool:
        """Return whether a job, or one of a group, asks for a QPU."""
        return any(map(_requests_qpu, jobs_in(job)))

    def wish_of(self, job: Any) -> Wish | None:
        """Return what a job, or group of jobs, asks for, checked; `None` if it uses no QPU.

        Raises:
            QPURequestError: The request is malformed, or can never be met at this site.
        """
        members = _sorted_jobs(job)
        requesting = [member for member in members if _requests_qpu(member)]
        self._refuse_strays(members, requesting)
        if not requesting:
            return None
        with _naming(requesting[0]):
            # Not from the group's own resources, in which snakemake 9.27.1 sums the `qpu` of jobs
            # that may run at the same time (`GroupResources.basic_layered`). They share one lease.
            wish = merge_wishes(job.groupid if job.is_group() else "", map(self._parse, requesting))
            for member in requesting:
                self._require_cpus(member)
            if is_choice(wish):
                self._require_possible(requesting[0], wish)
            else:
                names = [str(each.constraint.name) for each in wish]
                self._require_granted(requesting, self._request(wish, names))
            self._check_fallback(job, wish)
            return wish

    def request_of(self, job: Any, *, stage: str | None = None) -> JobRequest | None:
        """Return the QPUs of a job that is ready, chosen if its rules leave a choice.

        Args:
            job: The job, or group of jobs.
            stage: The stage that it is in, whose QPU has been chosen (`request_of_stage`).

        Raises:
            QPURequestError: The request cannot be met at this site.
            LeaseError: No QPU that fits can be chosen now; `retryable` is true.
        """
        wish = self.wish_of(job)
        if wish is None:
            return None
        if (moved := self.fallbacks.qpu_of(job)) is not None:
            return self._request(wish, [moved])
        requesting = [member for member in _sorted_jobs(job) if _requests_qpu(member)]
        if not is_choice(wish):
            return self._request(wish, [str(each.constraint.name) for each in wish])
        with _naming(requesting[0]):
            asker = self._asker(requesting[0], wish)
            names = self.choices.choose(job, wish, asker, stage=stage)
            request = self._request(wish, names)
            self._require_granted(requesting, request)
            chosen = {each.constraint: name for each, name in zip(wish, names, strict=True)}
            for member in requesting:
                own = self._wishes[member, member.attempt] = self._parse(member)
                set_qpu_name(member, [chosen[each.constraint] for each in own])
            return request

    def request_of_stage(
        self, stage: str, wishes: Mapping[Any, Wish], opened: str | None
    ) -> dict[Any, QPURequest]:
        """Return what each job of a stage asks for, of the one QPU that is chosen for all.

        Args:
            stage: The stage's name.
            wishes: What its jobs that use the QPU ask for, the same constraint in each.
            opened: The stage's QPU, if it is open.

        Raises:
            QPURequestError: The request cannot be met at this site.
            LeaseError: No QPU that fits can be chosen now; `retryable` is true.
        """
        first, wish = next(iter(wishes.items()))
        qpu = str(wish[0].constraint.name)
        if is_choice(wish):
            member = next(each for each in _sorted_jobs(first) if _requests_qpu(each))
            with _naming(member):
                asker = self._asker(member, wish)
                qpu = self.choices.choose_for_stage(stage, [*wishes], wish, asker, opened)
        return {job: self._request(each, [qpu])[0] for job, each in wishes.items()}

    def _check_fallback(self, job: Any, wish: Wish) -> None:
        """Refuse a fallback that a job cannot use."""
        names = fallback_of(job)
        if not names:
            return
        if len(wish) > 1 or any(each.resources.get("qpu_coalesce") for each in jobs_in(job)):
            raise RequestError(
                f"qpu_fallback={'|'.join(names)!r}: a job with several QPUs, or with qpu_coalesce, "
                "can have no fallback. Remove one of them."
            )
        (own,) = (each.constraint for each in wish)
        environ = _without_moves()
        if own.name is not None:
            plan = plan_fallback(own.name, names, config=None, environ=environ)
            names = () if plan is None else plan.names[1:]
        for name in names:
            find_qpu(name, environ=environ)  # refuses one that is not defined
            if name in self.site.qpus:
                members = [each for each in jobs_in(job) if _requests_qpu(each)]
                self._require_granted(members, self._request(wish, [name]))

    def _request(self, wish: Wish, names: Iterable[str]) -> JobRequest:
        requests = []
        for each, name in zip(wish, names, strict=True):
            request = QPURequest(qpu=name, count=each.count)
            requests.append(self._exclusively(request) if each.is_exclusive else request)
        return tuple(requests)

    def _asker(self, job: Any, wish: Wish) -> Asker:
        from qrmi_workflows.choice.candidates import Asker  # see `choices`

        account, partition = _charged(job)
        return Asker(
            for_job=True,
            count=max(each.count for each in wish),
            account=account,
            partition=partition,
            key=str(job),
        )

    def _require_possible(self, job: Any, wish: Wish) -> None:
        checked = (wish, *_charged(job))
        if checked not in self._possible:
            self.choices.require_possible(wish, self._asker(job, wish))
            self._possible.add(checked)

    def _require_granted(self, jobs: Iterable[Any], request: JobRequest) -> None:
        if request not in self._checked:
            self._require_offered(request)
            self._checked.add(request)
        for job in jobs:
            self._require_allowed(job, request)

    def _require_allowed(self, job: Any, requests: JobRequest) -> None:
        account, partition = _charged(job)
        for request in real_qpus(requests):
            if (request, account, partition) not in self._allowed:
                require_request(request, self.site, Slurm(), account=account, partition=partition)
                self._allowed.add((request, account, partition))
        if len(requests) > 1:  # refuses those that no job can hold together
            self.sbatch_options(job, requests)

    def _refuse_strays(self, members: Iterable[Any], requesting: Sequence[Any]) -> None:
        """Refuse resources of a QPU that the job would not hold, or not as written."""
        for job in members:
            if (job, job.attempt) in self._checked_attempts:
                continue
            try:
                refuse_unknown_resources(stated_resources(job.rule))
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
            wish = self.wish_if_known(job)
            if wish is not None and job.is_local:
                raise QPURequestError(
                    f"rule {job.name!r} is a localrule and asks for qpu={wish[0].count}: it "
                    "would run here, without Slurm and without a lease. Take it out of "
                    "`localrules`, or remove `qpu`."
                )
            if wish is not None and job.is_group():
                self._require_cpus_of_group(job)
            if wish is not None and (job.is_group() or not job.is_shell):
                require_parsable_wildcards(job)

    def wish_if_known(self, job: Any) -> Wish | None:
        """Return a job's wish before the job is ready; `None` if it depends on missing files."""
        try:
            is_known = not any(_is_undetermined(member) for member in jobs_in(job))
            return self.wish_of(job) if is_known else None
        except QPURequestError:
            raise
        except Exception:
            # A function in the Snakefile may raise anything while its input files do not exist. The
            # request is checked again when the job is submitted.
            return None

    def sbatch_options(self, job: Any, request: JobRequest, *, units: bool = True) -> list[str]:
        """Render the sbatch options of a request.

        Args:
            job: The job. Its own partition takes precedence over the one of the site policy.
            request: Its request.
            units: Whether to ask for the QPUs themselves.

        Raises:
            RequestError: One job cannot hold all of the QPUs.
        """
        # A job of a stage does not hold the QPU, but may reach the vendor only from there.
        account, partition = _charged(job)
        real = real_qpus(request)
        if not real:  # then the site need not have a policy
            return []
        options = compile_requests(real, self.site, Slurm(), account=account, partition=partition)
        return [each for each in options if units or each.startswith("--partition=")]

    def _parse(self, job: Any) -> Wish:
        if (known := self._wishes.get((job, job.attempt))) is not None:
            return known  # its resources name the QPU that was chosen
        resources = job.resources
        _refuse_conflicting_options(resources)
        if (coalesce := resources.get("qpu_coalesce")) not in (None, 0, 1):
            raise RequestError(
                f"qpu_coalesce={coalesce!r}: must be 1 or 0. Write qpu_coalesce=1, or set limits "
                "in the program, with `Coalesce`."
            )
        return parse_wish(resources, lambda: self.site)

    def _require_cpus_of_group(self, group: Any) -> None:
        try:
            self._require_cpus(group)
        except RequestError as error:
            raise QPURequestError(f"group {group.groupid!r}: {error}") from error
        except Exception:
            return  # a function in the Snakefile, as in `request_if_known`


@contextmanager
def _naming(job: Any) -> Iterator[None]:
    """Name a job's rule in the errors of this package, but not where the job may wait."""
    try:
        yield
    except LeaseError as error:
        if error.retryable:
            raise
        raise QPURequestError(f"rule {job.rule.name!r}: {error}") from error
    except QPUError as error:
        raise QPURequestError(f"rule {job.rule.name!r}: {error}") from error


def _refuse_stray(job: Any, *, holds_qpu: bool, is_requesting: bool) -> None:
    name, value = (None, None) if is_requesting else stray_resource(job) or (None, None)
    # In a group, a rule without `qpu` runs under the lease of the others, and may name its QPU.
    if name is not None and not (name == "qpu_name" and holds_qpu):
        raise RequestError(
            f"it sets {name}={value!r} but not `qpu`, so its job would not hold the QPU. Add qpu=1 "
            f"to its resources, or remove {name}."
        )


def _charged(job: Any) -> tuple[str | None, str | None]:
    """Return the account and the partition that a rule names, if it does."""
    names = (job.resources.get(name) for name in ("slurm_account", "slurm_partition"))
    account, partition = (None if name is None else str(name) for name in names)
    return account, partition


def _sorted_jobs(job: Any) -> list[Any]:
    return sorted(jobs_in(job), key=str)  # a group is a set; messages must name the same rule


def _requests_qpu(job: Any) -> bool:
    count = None if job.is_norun else job.resources.get("qpu")
    # `False` equals 0, but is a mistake that QPURequest refuses.
    return count is not None and (isinstance(count, bool) or count != 0)


def _is_undetermined(job: Any) -> bool:
    names = ("qpu", "qpu_name", *CONDITIONS, "qpu_fallback")
    return TO_BE_DETERMINED in (job.resources.get(name) for name in names)


def _without_moves() -> dict[str, str]:
    """Return this process's environment without what concerns its own job."""
    return {name: value for name, value in os.environ.items() if name not in STAGE_VARIABLES}


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
