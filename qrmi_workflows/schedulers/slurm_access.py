"""Slurm: whether its partitions let in whom the site policy does; for `qpu doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.slurm_facts import Partition, SlurmFacts

__all__ = ["check_access"]


def check_access(facts: SlurmFacts, site: SitePolicy) -> Iterator[Finding]:
    """Compare accounts and the limits of partitions with the policy's."""
    for policy in site.qpus.values():
        yield from _check_accounts(facts, site, policy)
        for name in policy.all_partitions:
            if partition := facts.partitions.get(name):
                yield from _check_groups(site, policy, name, partition)
                yield from _check_allowed_accounts(site, policy, name, partition)


def _check_accounts(facts: SlurmFacts, site: SitePolicy, policy: QPUPolicy) -> Iterator[Finding]:
    place = site.place(policy.name, "accounts")
    if policy.accounts and facts.accounts is None:
        yield Finding.warning(
            "access",
            f"QPU {policy.name!r}: accounts = {list(policy.accounts)} ({place}), but Slurm's "
            "accounting did not tell which accounts exist.",
            "Check AccountingStorageType in slurm.conf and that slurmdbd runs.",
        )
        return
    known = {name.lower() for name in facts.accounts or ()}
    for account in policy.accounts:
        if account.lower() not in known:
            yield Finding.error(
                "access",
                f"QPU {policy.name!r}: unknown account {account!r} ({place}); Slurm has: "
                f"{', '.join(sorted(known)) or 'none'}.",
                f"Correct it, or add it: sacctmgr add account {account}",
            )


def _check_groups(
    site: SitePolicy, policy: QPUPolicy, name: str, partition: Partition
) -> Iterator[Finding]:
    if not (policy.users or policy.groups):
        return
    if partition.groups is None:
        named = ",".join(policy.groups) or "GROUP"
        yield Finding.warning(
            "access",
            f"QPU {policy.name!r}: partition {name!r} lets everybody in, so a job that is "
            "submitted without this software is not stopped.",
            f"Set `AllowGroups={named}` for the partition in slurm.conf. It cannot name users: put "
            "them into a group.",
        )
    elif refused := sorted(set(policy.groups) - partition.groups):
        yield Finding.error(
            "access",
            f"QPU {policy.name!r}: members of {', '.join(refused)} may use it "
            f"({site.place(policy.name, 'groups')}), but partition {name!r} has "
            f"AllowGroups={','.join(sorted(partition.groups))}.",
            "Add them to AllowGroups in slurm.conf, or remove them from `groups`.",
        )


def _check_allowed_accounts(
    site: SitePolicy, policy: QPUPolicy, name: str, partition: Partition
) -> Iterator[Finding]:
    if not policy.accounts:
        return
    if partition.accounts is None:
        yield Finding.warning(
            "access",
            f"QPU {policy.name!r}: partition {name!r} takes jobs of all accounts.",
            f"Set `AllowAccounts={','.join(policy.accounts)}` for the partition in slurm.conf.",
        )
    elif refused := sorted({each.lower() for each in policy.accounts} - partition.accounts):
        yield Finding.error(
            "access",
            f"QPU {policy.name!r}: jobs of {', '.join(refused)} may use it "
            f"({site.place(policy.name, 'accounts')}), but partition {name!r} has "
            f"AllowAccounts={','.join(sorted(partition.accounts))}.",
            "Add them to AllowAccounts in slurm.conf, or remove them from `accounts`.",
        )
