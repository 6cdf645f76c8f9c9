"""Several QPUs in one job: one request to the scheduler, for all of them or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.base import QPURequest, Scheduler
from qrmi_workflows.schedulers.request import compile_request

__all__ = ["check_all_offered", "compile_requests", "granted_policy", "join_options", "qpu_names"]

_PARTITION = "--partition"
_COUNTED = ("--gres", "--licenses")
_LISTS = (*_COUNTED, "--qpu")  # schedulers take a list here, and use the last of two


def qpu_names(qpu: str | Sequence[str], where: str = "qpu") -> tuple[str, ...]:
    """Return the names of the QPUs that a text (`a+b`, `a,b`) or a list asks for.

    Args:
        qpu: The text or the list.
        where: What holds it, for the message.

    Raises:
        RequestError: It asks for none, or for one twice.
    """
    parts = re.split(r"[+,]", qpu) if isinstance(qpu, str) else qpu
    names = tuple(part.strip() for part in parts)
    if not names or "" in names or len(set(names)) < len(names):
        raise RequestError(f"{where}={qpu!r}: must name one or more QPUs, each once. Correct it.")
    return names


def compile_requests(
    requests: Sequence[QPURequest],
    site: SitePolicy,
    scheduler: Scheduler,
    *,
    account: str | None = None,
    partition: str | None = None,
) -> list[str]:
    """Compile a job's requests into the scheduler's options; see `compile_request`.

    If the user has chosen the partition, it is not among them.

    Raises:
        RequestError: The site policy does not allow one, or one job cannot hold all of the QPUs.
        UnknownQPUError: The site does not offer one.
    """
    options = [
        compile_request(each, site, scheduler, account=account, partition=partition)
        for each in requests
    ]
    if partition:
        options = [[o for o in each if not o.startswith(f"{_PARTITION}=")] for each in options]
    try:
        return join_options(options)
    except RequestError as error:
        names = " and ".join(repr(request.qpu) for request in requests)
        raise RequestError(f"QPUs {names}: {error}") from error


def check_all_offered(
    requests: Sequence[QPURequest], site: SitePolicy, scheduler: Scheduler
) -> None:
    """Ask the scheduler whether it offers each of the QPUs, and all of them to one job.

    Raises:
        UnknownQPUError: The site policy does not offer one.
        RequestError: The scheduler does not offer one, or not all of them together.
        SchedulerError: The scheduler did not answer.
    """
    real = [request for request in requests if not is_emulated(request.qpu)]
    for request in real:
        scheduler.check_offered(request, site)
    if len(real) > 1:
        scheduler.check_together(real, site)


def granted_policy(request: QPURequest, site: SitePolicy) -> QPUPolicy:
    """Return a QPU's policy; where jobs share it by lanes, with as many as requested."""
    policy = site.qpu(request.qpu)
    return replace(policy, lanes=request.count) if policy.exclusive is False else policy


def join_options(requests: Iterable[Sequence[str]]) -> list[str]:
    """Join the scheduler's options for each QPU into those of one job.

    Of the partitions that the scheduler may choose from, those are left that grant all QPUs.

    Raises:
        RequestError: The QPUs need different values of an option, for example of the partition.
    """
    joined: dict[str, list[str]] = {}
    for option in (each for options in requests for each in options):
        name, _, value = option.partition("=")
        values = joined.setdefault(name, [])
        if value not in values or name in _COUNTED:
            values.append(value)
    if _PARTITION in joined:
        joined[_PARTITION] = _common(joined[_PARTITION])
    for name, values in joined.items():
        if len(values) > 1 and name not in _LISTS:
            raise RequestError(
                f"they need different values of {name} ({' and '.join(values)}), so one job "
                "cannot hold them all. Use them in jobs of their own."
            )
    return [
        f"{name}={','.join(_add_up(values) if name in _COUNTED else values)}"
        for name, values in joined.items()
    ]


def _common(lists: Sequence[str]) -> list[str]:
    """Return one list of the names that all comma-separated lists have, or the lists."""
    names = [each.split(",") for each in lists]
    common = [name for name in names[0] if all(name in each for each in names)]
    return [",".join(common)] if common else [*lists]


def _add_up(units: Iterable[str]) -> list[str]:
    """Add up units of the same name: Slurm takes `qpu:1,qpu:1` for one unit."""
    counts: dict[str, int] = {}
    for unit in units:
        name, _, count = unit.rpartition(":")
        counts[name] = counts.get(name, 0) + int(count)
    return [f"{name}:{count}" for name, count in counts.items()]
