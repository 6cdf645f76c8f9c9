"""What `qpu doctor` reads of a site before it judges: its files and its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qrmi_workflows.config.qpus import QPUDefinition, find_config, load_dynamic, load_qpus
from qrmi_workflows.config.site import (
    SitePolicy,
    find_site_policy,
    load_site_policy,
    policy_mistakes,
)
from qrmi_workflows.errors import ConfigError, SchedulerError
from qrmi_workflows.schedulers import scheduler_of, this_scheduler
from qrmi_workflows.schedulers.base import Examination, Scheduler

__all__ = ["SiteReading", "read_site"]

_COMMAND_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReading:
    """What was read of a site.

    Attributes:
        site: The site policy; `None` if it has mistakes, or there is none.
        policy_path: Its file; `None` if there is none.
        mistakes: The mistakes in it, each with the line to correct.
        config_path: The path of `qrmi_config.json`; `None` if there is none.
        config_error: Why it could not be read.
        definitions: The QPUs that it defines, by name.
        accounts: Its entries that stand for all QPUs of an account, by name.
        scheduler: The site's scheduler; `None` if the policy names one that is not installed.
        scheduler_error: Why the scheduler could not be asked.
        examination: The scheduler's answer.
    """

    site: SitePolicy | None = None
    policy_path: Path | None = None
    mistakes: tuple[str, ...] = ()
    config_path: Path | None = None
    config_error: str | None = None
    definitions: Mapping[str, QPUDefinition] = field(default_factory=dict)
    accounts: Mapping[str, QPUDefinition] = field(default_factory=dict)
    scheduler: Scheduler | None = None
    scheduler_error: str | None = None
    examination: Examination | None = None


def read_site(config: Path | None = None) -> SiteReading:
    """Read the site's files, and ask its scheduler.

    Args:
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
    """
    policy_path, site, mistakes = _read_policy()
    config_path, config_error = config, None
    definitions: dict[str, QPUDefinition] = {}
    accounts: dict[str, QPUDefinition] = {}
    try:
        config_path = config or find_config()
        definitions, accounts = load_qpus(config_path), load_dynamic(config_path)
    except (ConfigError, OSError) as error:
        config_error = str(error)
    scheduler, examination, scheduler_error = _ask_scheduler(site)
    return SiteReading(
        site=site,
        policy_path=policy_path,
        mistakes=tuple(mistakes),
        config_path=config_path,
        config_error=config_error,
        definitions=definitions,
        accounts=accounts,
        scheduler=scheduler,
        scheduler_error=scheduler_error,
        examination=examination,
    )


def _read_policy() -> tuple[Path | None, SitePolicy | None, list[str]]:
    path = None
    try:
        path = find_site_policy()
        if mistakes := policy_mistakes(path):
            return path, None, mistakes
        return path, load_site_policy(path), []
    except (ConfigError, OSError) as error:
        return path, None, [str(error)]


def _ask_scheduler(
    site: SitePolicy | None,
) -> tuple[Scheduler | None, Examination | None, str | None]:
    scheduler = None
    try:
        scheduler = this_scheduler() if site is None else scheduler_of(site)
        return scheduler, scheduler.examine(site, timeout=_COMMAND_SECONDS), None
    except (ConfigError, SchedulerError) as error:
        return scheduler, None, str(error)
