"""The QPUs among which to choose: those that a job may request, or that this process may use."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.choice.cache import cache_file, read_cached, write_cached
from qrmi_workflows.client.discovery import list_discovered
from qrmi_workflows.config.job import JobQPU, read_job
from qrmi_workflows.config.qpus import QPUDefinition, load_dynamic, load_qpus
from qrmi_workflows.config.site import (
    QPUPolicy,
    SitePolicy,
    find_site_policy,
    load_site_policy,
    readable_site_policy,
)
from qrmi_workflows.errors import ConfigError, QPUError
from qrmi_workflows.schedulers import load_scheduler, scheduler_of
from qrmi_workflows.schedulers.access import require_user
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.request import require_allowed

__all__ = ["Asker", "Candidate", "Candidates", "find_candidates"]

_LIST_SECONDS = 3600.0  # for which the list of an account's QPUs is used
_FAILED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks for QPUs, and for what.

    Attributes:
        for_job: Whether a job will be submitted for them: then the site's scheduler must offer
            them. Otherwise, this process uses them itself.
        count: How many units of each QPU the job requests.
        account: The account that the job is charged to; the user's default if `None`.
        partition: The partition that the user has chosen for the job, if any.
        scheduler: The scheduler's name; the site's own if `None`.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        only: The only QPUs to choose from, if there is such a limit.
        key: What tells this choice from others that are made at the same time, as the step's name:
            they are spread among equals.
    """

    for_job: bool
    count: int = 1
    account: str | None = None
    partition: str | None = None
    scheduler: str | None = None
    config: Path | None = None
    only: frozenset[str] | None = None
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A QPU that may be chosen, or why it may not.

    Attributes:
        definition: How to reach it; `None` if this user can read no definition of it.
        policy: The site's policy for it, if there is one.
        refusal: Why the user may not use it; empty if they may.
    """

    definition: JobQPU | None
    policy: QPUPolicy | None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """All QPUs among which to choose.

    Attributes:
        qpus: The candidates, by name.
        site: The site policy, if there is one.
        where: Where their names come from, for messages: `in the site policy …`.
        problems: Why some QPUs are not known, as sentences.
    """

    qpus: Mapping[str, Candidate]
    site: SitePolicy | None
    where: str
    problems: tuple[str, ...] = ()


def find_candidates(asker: Asker, environ: Mapping[str, str] = os.environ) -> Candidates:
    """Return the QPUs among which to choose.

    Raises:
        ConfigError: There is no usable site policy, or none of `qrmi_config.json`.
    """
    site: SitePolicy | None
    if asker.for_job:
        site = load_site_policy(find_site_policy(environ))
    else:
        site = readable_site_policy(environ)
    problems: list[str] = []
    try:
        defined = _definitions(asker, environ, problems)
    except ConfigError:
        # At some sites, only the SPANK plugin may read qrmi_config.json.
        if site is None or asker.config is not None:
            raise
        defined = {}
    offered = {} if site is None else site.qpus
    names = set(offered if asker.for_job else defined)
    where = "in the definitions of QPUs"
    if asker.for_job and site is not None:
        where = f"in the site policy {site.path}"
    if asker.only is not None:
        names &= asker.only
        where = "among the QPUs that this job holds"
    qpus = {
        name: Candidate(
            definition=defined.get(name),
            policy=offered.get(name),
            refusal=_refusal(name, site, asker, environ),
        )
        for name in sorted(names)
    }
    return Candidates(qpus=qpus, site=site, where=where, problems=tuple(problems))


def _refusal(name: str, site: SitePolicy | None, asker: Asker, environ: Mapping[str, str]) -> str:
    if site is None or name not in site.qpus:
        return ""
    try:
        if asker.for_job:
            require_allowed(
                QPURequest(qpu=name, count=asker.count),
                site,
                load_scheduler(asker.scheduler) if asker.scheduler else scheduler_of(site, environ),
                account=asker.account,
                partition=asker.partition,
            )
        else:
            require_user(name, site)
    except ConfigError as error:
        return str(error).removeprefix(f"QPU {name!r}: ").rstrip(".")
    return ""


def _definitions(
    asker: Asker, environ: Mapping[str, str], problems: list[str]
) -> dict[str, JobQPU]:
    """Return the definitions that this user can read, those of accounts expanded."""
    found: dict[str, JobQPU] = {}
    carried = read_job(environ) if asker.config is None else {}
    try:
        for account in load_dynamic(asker.config).values():
            names, problem = _list(account, environ)
            found |= {name: _job_qpu(account, name) for name in names}
            if problem:
                problems.append(problem)
        found |= {name: _job_qpu(each, name) for name, each in load_qpus(asker.config).items()}
    except ConfigError:
        if not carried:
            raise
    return found | carried


def _job_qpu(definition: QPUDefinition, name: str) -> JobQPU:
    return JobQPU(name=name, type=definition.type, environment=definition.environment, token=None)


def _list(account: QPUDefinition, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the names of an account's QPUs, or why they are not known; the cache has them."""
    identity = _job_qpu(account, account.name).identity
    path = cache_file(f"account-{account.name}-{identity}.json", environ)
    document = read_cached(path, _LIST_SECONDS)
    if document is not None:
        names, problem = document.get("names"), document.get("problem")
        is_recent = abs(time.time() - float(document["at"])) < _FAILED_SECONDS
        if isinstance(names, list) and (not problem or is_recent):
            return [str(name) for name in names], str(problem or "")
    now = time.time()
    names, problem = [], ""
    try:
        names = [each.name for each in list_discovered(account)]
    except QPUError as error:
        problem = str(error)
    write_cached(path, {"names": names, "problem": problem}, at=now)
    return names, problem
