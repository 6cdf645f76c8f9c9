"""Who may use a QPU: the users, groups and accounts of the site policy.

The scheduler has the last word, by the limits of its partitions; this refuses a request before it
is submitted, and says why.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.state.users import user_name

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import Scheduler

__all__ = ["group_names", "require_access", "require_account", "require_user"]


def group_names(user: str) -> set[str]:
    """Return the names of the groups that a user is in."""
    try:
        ids: Iterable[int] = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        # This process's groups say nothing about another user.
        ids = {os.getgid(), *os.getgroups()} if user == user_name() else ()
    names = set()
    for gid in ids:
        with suppress(KeyError):  # a group that only another host knows
            names.add(grp.getgrgid(gid).gr_name)
    return names


def require_access(
    qpu: str,
    site: SitePolicy,
    scheduler: Scheduler,
    *,
    account: str | None = None,
    partition: str | None = None,
) -> None:
    """Refuse a QPU that this user may not use, or not from this account or partition.

    Args:
        qpu: The QPU's name.
        site: The site policy.
        scheduler: The scheduler, which is asked for the user's default account if it matters.
        account: The account that the job is charged to; the user's default if `None`.
        partition: The partition that the user has chosen; that of the policy if `None`.

    Raises:
        RequestError: The policy does not let this user, or a job of this account, use the QPU.
        UnknownQPUError: The site does not offer it.
    """
    policy = site.qpu(qpu)
    require_user(qpu, site)
    if policy.accounts:
        require_account(qpu, site, account or scheduler.default_account())
    is_limited = policy.users or policy.groups or policy.accounts
    if is_limited and not set((partition or "").split(",")) - {""} <= set(policy.all_partitions):
        raise RequestError(
            f"QPU {qpu!r}: partition {partition!r} does not grant it; must be one of: "
            f"{', '.join(policy.all_partitions)}. Leave the partition out."
        )


def require_account(qpu: str, site: SitePolicy, account: str | None) -> None:
    """Refuse a QPU that jobs of an account may not use; if it is not known, the scheduler decides.

    Raises:
        RequestError: The policy does not let them use the QPU.
        UnknownQPUError: The site does not offer it.
    """
    accounts = site.qpu(qpu).accounts
    # Slurm's accounts are in lower case.
    if accounts and account and account.lower() not in {each.lower() for each in accounts}:
        raise RequestError(
            f"QPU {qpu!r}: jobs of account {account!r} may not use it; must be one of: "
            f"{', '.join(accounts)}. Name one of them as the job's account, or ask your "
            f"administrators ({site.place(qpu, 'accounts')})."
        )


def require_user(qpu: str, site: SitePolicy, user: str | None = None) -> None:
    """Refuse a QPU that a user may not use.

    Args:
        qpu: The QPU's name.
        site: The site policy.
        user: The user's name; this user if `None`.

    Raises:
        RequestError: The policy does not let this user use the QPU.
        UnknownQPUError: The site does not offer it.
    """
    policy = site.qpu(qpu)
    if not (policy.users or policy.groups):
        return
    user = user or user_name()
    if user in policy.users or group_names(user) & set(policy.groups):
        return
    key = "users" if policy.users else "groups"
    allowed = [*policy.users, *(f"members of {group}" for group in policy.groups)]
    raise RequestError(
        f"QPU {policy.name!r}: user {user!r} may not use it; must be one of: {', '.join(allowed)}. "
        f"Ask your administrators for access ({site.place(policy.name, key)})."
    )
