"""What `qpu run` was asked for: its task, and the QPU that the task may run on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qrmi_workflows.cli.choosing import tell
from qrmi_workflows.errors import ConfigError, PayloadError, QPUError, RequestError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.chosen import Chosen, default_request, resolve

if TYPE_CHECKING:
    from qrmi_workflows import Lease
    from qrmi_workflows.client.targets import QPUTarget
    from qrmi_workflows.config.job import JobQPU
    from qrmi_workflows.payloads import Payload

__all__ = ["TaskRequest"]

_TARGET_SECONDS = 5.0  # deadline for fetching the target, before the QPU is acquired


@dataclass(kw_only=True)
class TaskRequest:
    """A task, and which QPUs it may run on.

    Attributes:
        read: Reads the payload, given the `resource_type` of its QPU, if that is known.
        qpu: The request for a QPU, as `resolve` takes it; also the next three.
        min_qubits: How many qubits it has at least.
        type: Its resource type.
        where: An expression that must hold for it.
        fallback: The QPUs to fall back to, as `open_lease` takes them.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        coalesce: Whether the task may share one at the vendor with other steps.
        step: The step that the task is, if it does not belong to one of a workflow.
        await_lease: Waits until the lease of the job can be used; called once, before it is opened.
    """

    read: Callable[..., Payload]
    qpu: str | None
    min_qubits: int | None
    type: str | None
    where: str | None
    fallback: str | None
    config: Path | None
    coalesce: bool
    step: str | None
    await_lease: Callable[[], None] | None
    _fitting: dict[str, tuple[JobQPU, Payload]] = field(default_factory=dict)

    def choose(self, avoid: Collection[str] = ()) -> Chosen:
        """Return the QPU, chosen among those that the payload fits if there is a choice.

        Raises:
            PayloadError: It fits none of them.
            RequestError: Several QPUs are asked for; or see `resolve`.
        """
        unfit: list[str] = []
        first: PayloadError | None = None
        while True:
            try:
                chosen = self._resolve([*avoid, *unfit])
            except QPUError:
                if first is not None:
                    raise first from None
                raise
            if not chosen.choices or chosen.stays:
                break
            if chosen.choices[0].qpu in unfit and first is not None:
                raise first
            try:
                self.find_fitting(chosen)
            except PayloadError as error:
                first = first or error
                unfit.append(chosen.choices[0].qpu)
            else:
                break
        tell(chosen.choices)
        return chosen

    def _resolve(self, avoid: Collection[str]) -> Chosen:
        chosen = resolve(
            self.qpu,
            min_qubits=self.min_qubits,
            type=self.type or self._types(),
            where=self.where,
            config=self.config,
            step=self.step,
            avoid=avoid,
        )
        if isinstance(chosen.qpus, list):
            raise RequestError(
                f"--qpu {self.qpu!r}: a task runs on one QPU, not on {len(chosen.qpus)}. Name one."
            )
        return chosen

    def _types(self) -> str | None:
        """Return the types of the payload's vendor if the QPU is to be chosen; else `None`."""
        from qrmi_workflows.config.constraints import parse_qpus, plain_names
        from qrmi_workflows.vendors.registry import load_vendor

        qpu = self.qpu or default_request()
        if (qpu, self.min_qubits, self.where) == (None, None, None):
            return None
        asked_for = parse_qpus(qpu, min_qubits=self.min_qubits, where=self.where)
        if plain_names(asked_for) is not None:
            return None
        return "|".join(load_vendor(self.read().vendor).types) or None

    def find_fitting(self, chosen: Chosen) -> tuple[JobQPU, Payload]:
        """Return how to reach the QPU, and the task, which was checked for it.

        Raises:
            PayloadError: The payload is not valid, or does not fit the QPU.
        """
        from qrmi_workflows.config.variables import QPU_MOVED_FROM

        name = cast("str | None", chosen.qpus)
        if name in self._fitting:  # it was checked when it was chosen
            return self._fitting[name]
        try:
            found = find_qpu(name, config=self.config)
        except ConfigError:
            self.read()  # say first what is wrong with the payload
            raise
        task = self.read(resource_type=found.type)
        if QPU_MOVED_FROM not in os.environ:  # else it was checked for the QPU that it is for
            task.require_type(found.name, found.type)
            _require_fit(task, found)
        self._fitting[found.name] = found, task
        return found, task

    def open(self, chosen: Chosen) -> tuple[Lease, Payload]:
        """Open a lease, once the task is known to fit the QPU.

        Raises:
            QPUError: See `find_fitting` and `open_lease`.
        """
        from qrmi_workflows import open_lease
        from qrmi_workflows.config.variables import QPU_ALIVE
        from qrmi_workflows.lease.fallback_plan import require_runnable

        found, task = self.find_fitting(chosen)
        rest = chosen.without_itself(self.fallback)
        if rest is not None:
            require_runnable(task, found.name, rest, config=self.config)
        _import_for_tasks()
        if self.await_lease is not None:
            self.await_lease()
            self.await_lease = None
        if self.step is not None:  # another run may find the task, even if nobody waits for this
            os.environ.pop(QPU_ALIVE, None)
        lease = open_lease(
            found.name,
            config=self.config,
            step=self.step,
            coalesce=self.coalesce,
            fallback=rest,
        )
        return lease, task


def _require_fit(task: Payload, qpu: JobQPU) -> None:
    """Check a payload against the target if that is cached or can be fetched quickly."""
    from qrmi_workflows.client.resource import QRMIResource
    from qrmi_workflows.client.targets import cached_target, fetch_target, require_fit

    def fetch(*, refresh: bool = True) -> QPUTarget:
        deadlines = {"target": _TARGET_SECONDS}
        resource = QRMIResource(
            qpu.name, qpu.type, qpu.environment, token=qpu.token, deadlines=deadlines
        )
        return fetch_target(qpu, resource=resource, refresh=refresh)

    task.require_fit(qpu.name, None)
    known = None
    with suppress(QPUError):
        known = cached_target(qpu) or fetch(refresh=False)
    require_fit(task, qpu.name, known, fetch)


def _import_for_tasks() -> None:
    """Import what the task will need, so that this does not happen while the QPU is held."""
    from qrmi_workflows.client.package import import_qrmi
    from qrmi_workflows.tasks import pool, run  # noqa: F401

    import_qrmi()
