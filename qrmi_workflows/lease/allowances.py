"""Which budgets limit the tasks of a lease: the site's, the job's and the stage's.

What counts is imported only where there is a budget.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.site import find_site_policy, load_site_policy
from qrmi_workflows.config.variables import QPU_BUDGET
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.budgets.allowance import Allowance
    from qrmi_workflows.budgets.limits import Limit
    from qrmi_workflows.lease.stage import Stage

__all__ = [
    "account_members",
    "chosen_budget",
    "find_allowance",
    "limit_of_stage",
    "overhead_of_tasks",
    "own_ledger",
    "settle_budgets",
    "site_ledger",
]

_MEMBERS_SECONDS = 300.0
_members: dict[str, tuple[float, frozenset[str] | None]] = {}


def chosen_budget(budget: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the budget of this process's job: as given, or `$QPU_BUDGET`; `None` without any.

    Raises:
        RequestError: It is not an amount.
    """
    where = "budget" if budget is not None else f"${QPU_BUDGET}"
    text = budget if budget is not None else environ.get(QPU_BUDGET)
    if not text:
        return None
    from qrmi_workflows.budgets.limits import parse_limit

    parse_limit(text, where)
    return text


def find_allowance(held: HeldQPU, budget: str | None) -> Allowance | None:
    """Return what the tasks of a lease may spend; `None` if nothing limits them.

    Args:
        held: The QPU.
        budget: The budget of the job, as `chosen_budget` returns it.

    Raises:
        ConfigError: The site policy is malformed, or the job or its account has an unusual name.
    """
    # The site's budgets are for its own QPUs. Those of the job also limit a rehearsal.
    own, site = _own_limits(held, budget), None
    if not is_emulated(held.qpu.name):
        site = site_ledger()
    if site is None and not own:
        return None
    from qrmi_workflows.budgets.allowance import Allowance
    from qrmi_workflows.budgets.limits import require_name

    job = this_job()
    account = None if job is None else job.account
    return Allowance(
        folder=site or own_ledger(),
        qpu=held.qpu.name,
        account=None if account is None else require_name(account, "account"),
        own=own,
        has_site_limits=site is not None,
        task_seconds=_task_seconds(held.qpu.name),
        members_of=account_members,
    )


def account_members(account: str) -> frozenset[str] | None:
    """Return who may charge jobs to an account, as the scheduler said within five minutes.

    `None` if that is not known.
    """
    known = _members.get(account)
    if known is None or time.monotonic() - known[0] > _MEMBERS_SECONDS:
        known = _members[account] = time.monotonic(), this_scheduler().account_members(account)
    return known[1]


def own_ledger() -> Path:
    """Return the folder of this user's ledger, for a site that has no budgets."""
    return state_folder() / "budgets"


def site_ledger(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the site's budgets and ledger; `None` if the site has no budgets.

    Raises:
        ConfigError: The site policy is malformed.
    """
    try:
        path = find_site_policy(environ)
    except ConfigError:
        return None
    folder = _folder_in(path) if path.exists() else None
    if folder is None:
        return None
    from qrmi_workflows.budgets.limits import limits_file

    return folder if limits_file(folder).exists() else None


def settle_budgets() -> None:
    """Settle in the budgets what this user's dead processes have reserved for tasks."""
    folders = [folder for folder in (site_ledger(), own_ledger()) if folder is not None]
    if not any((folder / "ledger").is_dir() for folder in folders):
        return
    from qrmi_workflows.budgets.ledger import Ledger, this_user
    from qrmi_workflows.budgets.settling import settle_all_dead

    for folder in folders:
        settle_all_dead(Ledger(folder).user(this_user()))


def overhead_of_tasks(held: HeldQPU) -> float:
    """Return how many seconds a vendor bills for each task besides its time on the QPU."""
    known = registered_type(held.qpu.type)
    if known is None:
        return 0.0
    mode = held.session_mode or known.session_mode(held.qpu.environment)
    return 0.0 if mode == "dedicated" else known.task_overhead


def _task_seconds(qpu: str) -> float | None:
    """Return how long a task counts as that has no estimate, if the site says so for its QPU."""
    try:
        policy = load_site_policy(find_site_policy()).qpus.get(qpu)
    except (ConfigError, OSError):  # without a site, or with a mistake in another key
        return None
    return None if policy is None else policy.task_seconds


@cache
def _folder_in(policy: Path) -> Path | None:
    # Read once: a site does not move its ledger under a running process.
    try:
        return load_site_policy(policy).folders.budgets
    except ConfigError:
        # A mistake in another key must neither stop all tasks nor switch the budgets off.
        import tomllib

        try:
            named = tomllib.loads(policy.read_text(encoding="utf-8"))["site"]["budgets"]
        except (KeyError, TypeError):
            return None
        except (OSError, ValueError):
            named = None
        if not isinstance(named, str):
            raise
        return Path(named)


def _own_limits(held: HeldQPU, budget: str | None) -> tuple[Limit, ...]:
    """Return the budgets of this process's job, and of its stage."""
    stage = None if held.membership is None else held.membership.stage
    of_stage = "" if stage is None else stage.budget
    if not budget and not of_stage:
        return ()
    from qrmi_workflows.budgets.limits import Limit, parse_limit, require_name

    limits = []
    if budget:
        unit, amount = parse_limit(budget, "budget")
        name = require_name(_job_name(held), "job")
        limits.append(Limit(scope="job", name=name, unit=unit, amount=amount))
    if stage is not None and of_stage:
        limits.append(limit_of_stage(stage))
    return tuple(limits)


def limit_of_stage(stage: Stage) -> Limit:
    """Return the budget of a stage that has one."""
    from qrmi_workflows.budgets.limits import Limit, parse_limit, require_name

    unit, amount = parse_limit(stage.budget, f"budget of stage {stage.name!r}")
    name = require_name(f"{stage.name}-{stage.id}", "stage")  # of this opening
    return Limit(scope="stage", name=name, unit=unit, amount=amount)


def _job_name(held: HeldQPU) -> str:
    """Return what identifies this process's job; outside of one, its lease."""
    job = this_job()
    if job is not None:
        return job.id if job.cluster is None else f"{job.id}@{job.cluster}"
    usage = (held.budget_of or held).usage_path()
    return f"lease-{usage.stem}" if usage is not None else f"process-{os.getpid()}"
