"""What the processes that share a lease have in common: variables, lanes, the usage file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.emulated import EMULATED_LANES, is_emulated, loopback_variables
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.job import JobQPU, read_job, write_job
from qrmi_workflows.config.variables import (
    QPU_BUDGET,
    QPU_HELD_LANES,
    QPU_LEASE_JOB,
    QPU_LEASE_USAGE,
    QPU_STAGE,
    QPU_STAGE_MEMBER,
    requested_lanes,
)
from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.schedulers import describe_this_job, this_job
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.lease.membership import Membership

__all__ = ["count_lanes", "find_owners_usage", "lanes_folder", "lease_environment"]


class _Held(Protocol):
    qpu: JobQPU
    membership: Membership | None

    def usage_path(self) -> Path | None: ...


def lease_environment(held: Iterable[_Held], budget: str | None = None) -> dict[str, str]:
    """Return the variables that let a child process adopt these leases; they hold credentials.

    Args:
        held: The leases' QPUs.
        budget: The budget of the job, which the child's tasks share.
    """
    all_held = list(held)
    variables = describe_this_job() | write_job(_complete(each.qpu) for each in all_held)
    job = this_job()
    variables[QPU_LEASE_JOB] = "" if job is None else job.id
    usage = [each.usage_path() for each in all_held]
    if any(usage):
        variables[QPU_LEASE_USAGE] = os.pathsep.join(str(path or "") for path in usage)
    if budget is not None:
        variables[QPU_BUDGET] = budget
    if any(is_emulated(each.qpu.name) for each in all_held):
        variables |= loopback_variables()
    if QPU_HELD_LANES in os.environ:  # inside of a call, whose lane the child shares
        variables[QPU_HELD_LANES] = os.environ[QPU_HELD_LANES]
    member = next((each.membership for each in all_held if each.membership is not None), None)
    if member is not None:
        # The child joins, too: it must notice when the token changes.
        variables |= {QPU_STAGE: member.name, QPU_STAGE_MEMBER: str(member.file or "")}
    elif QPU_STAGE in os.environ:
        variables[QPU_STAGE] = ""  # or the child would join it instead of adopting these leases
    return variables


def find_owners_usage(qpu: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the usage file that the lease's owner keeps; `None` if the site owns the lease."""
    # In the order of the job's QPUs, because each has a lease of its own.
    paths = environ.get(QPU_LEASE_USAGE, "").split(os.pathsep)
    named = dict(zip(read_job(environ), paths, strict=False)).get(qpu)
    return Path(named) if named else None


def lanes_folder(qpu: str, usage: Path | None) -> Path | None:
    """Return the folder for locking the lease's lanes; `None` if no other process can share it."""
    if usage is not None:
        return OpenLease.lanes_folder(usage) / qpu
    # A lease that the site acquired is shared by the processes of its job.
    job = this_job()
    return state_folder() / "leases" / "adopted" / f"{job.id}.lanes" / qpu if job else None


def count_lanes(qpu: str, resource: QRMIResource) -> int:
    """Return the number of lanes: from `$QPU_LANES`, the site policy or the vendor, else 1.

    Where jobs share the QPU by lanes, the job has as many as it holds units.
    """
    if (lanes := requested_lanes()) is not None:
        return lanes
    if is_emulated(qpu):
        return EMULATED_LANES
    # Processes that run no task do not need it.
    from qrmi_workflows.config.site import readable_site_policy
    from qrmi_workflows.lease.grants import held_units

    site = readable_site_policy()
    if site is not None and qpu in site.qpus:
        policy = site.qpu(qpu)
        units = held_units(qpu) if policy.exclusive is False else None
        return policy.lanes if units is None else min(units, policy.lanes)
    with suppress(QPUError):
        capacity = resource.status().capacity
        if capacity is not None and capacity.max_slots:
            return int(capacity.max_slots)
    return 1


def _complete(qpu: JobQPU) -> JobQPU:
    """Add the defaults of the QPU's type, which programs that only know QRMI do not have."""
    known = registered_type(qpu.type)
    defaults = {} if known is None else known.settings
    return replace(qpu, environment={**defaults, **qpu.environment})
