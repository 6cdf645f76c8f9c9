"""Open leases: adopt the one that this job has, or acquire one.

`open_lease` adopts a lease that it finds in the job's environment: the site's SPANK plugin, or an
outer `qpu lease exec`, has acquired it and will release it. Otherwise it acquires a QPU from
`qrmi_config.json`, and releases it on return, exception, SIGTERM and exit.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast, overload

from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.qpus import find_config
from qrmi_workflows.config.variables import QPU_STEP, coalesces_by_default, on_stop
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.lease.acquire import find_qpu, stage_to_join
from qrmi_workflows.lease.allowances import chosen_budget
from qrmi_workflows.lease.at_exit import (
    exit_on_sigterm,
    release_at_exit,
    run_uninterrupted,
)
from qrmi_workflows.lease.chosen import Chosen, open_chosen, resolve
from qrmi_workflows.lease.fallback import Fallback
from qrmi_workflows.lease.fallback_plan import plan_fallback
from qrmi_workflows.lease.grants import require_grant, require_in_service
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.lease.killwait import current_kill_wait
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.lease_set import LeaseSet
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.inherited import discard_inherited_leases
from qrmi_workflows.tasks.limits import Coalesce
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.lease.stage import Stage

__all__ = ["LeaseSet", "open_found", "open_lease"]

logger = logging.getLogger(__name__)

_NOT_BOTH = (
    "a lease with a fallback cannot coalesce: a payload must be able to move alone. Leave out one "
    "of them."
)
_REAP_SECONDS = 3.0  # how long a silent vendor of an orphaned lease may delay this one


@overload
def open_lease(
    qpu: str | None = None,
    *,
    min_qubits: int | None = None,
    type: str | None = None,
    where: str | None = None,
    stage: str | None = None,
    config: Path | str | None = None,
    step: str | None = None,
    coalesce: bool | Coalesce = False,
    budget: str | None = None,
    fallback: str | Sequence[str] | None = None,
) -> Lease: ...
@overload
def open_lease(
    qpu: list[str],
    *,
    min_qubits: int | None = None,
    type: str | None = None,
    where: str | None = None,
    stage: str | None = None,
    config: Path | str | None = None,
    step: str | None = None,
    coalesce: bool | Coalesce = False,
    budget: str | None = None,
    fallback: str | Sequence[str] | None = None,
) -> LeaseSet: ...
def open_lease(
    qpu: str | list[str] | None = None,
    *,
    min_qubits: int | None = None,
    type: str | None = None,  # noqa: A002 - QRMI's own word
    where: str | None = None,
    stage: str | None = None,
    config: Path | str | None = None,
    step: str | None = None,
    coalesce: bool | Coalesce = False,
    budget: str | None = None,
    fallback: str | Sequence[str] | None = None,
) -> Lease | LeaseSet:
    """Open a lease on a QPU: adopt the one that this job or its stage has, or acquire the QPU.

    Args:
        qpu: The QPU's name; may be omitted if the job holds, or the file defines, exactly one, or
            `$QPU_NAME` names one. With a pattern (`ibm_*`) or alternatives
            (`ibm_fez|ibm_torino`), the least busy one that is available is chosen. `emulated:fez`
            is a QPU that the lease emulates itself. For a list, or names with `+`, all of them are
            opened, or none.
        min_qubits: How many qubits each QPU has at least.
        type: The resource type of each, or a pattern.
        where: A condition on what is known of each: `"queue < 10 and 'cz' in gates"`. See
            docs/choosing.md.
        stage: The stage of several jobs whose lease to use. If `None`, `$QPU_STAGE` says it; that
            does not apply to other QPUs than the stage's.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        step: The name under which a rerun finds this step's tasks. If `None`, it is taken from
            `$QPU_STEP`, else from the scheduler's job; without either, every run is a new step.
        coalesce: Whether payloads that wait for a lane at the same time share tasks, or the limits
            for that (`Coalesce`); `$QPU_COALESCE=1` turns it on. A single submission, or
            `Lease.map`, may ask for something else.
        budget: What the tasks of this process's job (outside of jobs: of this lease) may take in
            total: `1000 shots`, or QPU seconds as `90 s`, `10 min` or `2 h`. If `None`,
            `$QPU_BUDGET` says it. The site's budgets apply, too.
        fallback: The QPUs to go on with if this one goes away, in order: names, or
            `emulated:MODEL` as the last. If `None`, `$QPU_FALLBACK` names them. Tasks then share
            no task with others. See docs/fail-over.md.

    Returns:
        A lease, or a `LeaseSet` for a list. Both are context managers that release at the end.

    Raises:
        RequestError: The request is not valid, or no QPU can ever satisfy it; or the scheduler
            grants the QPU to jobs, and has not granted it to this one; or the stage does not exist,
            is another user's, or has another QPU; or the limits or the budget are not valid.
        UnknownQPUError: No QPU of that name is defined here.
        ConfigError: There is no usable `qrmi_config.json`.
        LeaseError: The vendor did not grant it, the site has it in maintenance, or the stage has
            ended; or no QPU that fits is available, and none was in `$QPU_CHOICE_WAIT`.
        StepMovedError: The QPU has gone, and the next one needs a job of its own.
    """
    limits = Coalesce.of(coalesce or coalesces_by_default())
    budget = chosen_budget(budget)
    discard_inherited_leases()
    path = None if config is None else Path(config)

    def choose(avoid: Collection[str]) -> Chosen:
        return resolve(
            qpu,
            min_qubits=min_qubits,
            type=type,
            where=where,
            stage=stage,
            config=path,
            step=step,
            avoid=avoid,
        )

    def open_(chosen: Chosen) -> Lease | LeaseSet:
        options = _Options(step, path, limits, budget)
        return _open_named(chosen.qpus, stage, chosen.without_itself(fallback), options)

    return open_chosen(choose, open_)


class _Options(NamedTuple):
    """What `open_lease` was told about each lease."""

    step: str | None
    config: Path | None
    limits: Coalesce | None
    budget: str | None


def _open_named(
    qpu: str | list[str] | None,
    stage: str | None,
    fallback: str | Sequence[str] | None,
    options: _Options,
) -> Lease | LeaseSet:
    step, path, limits, budget = options
    joined = stage_to_join(qpu, stage)

    def open_one(named: str | None, stage: Stage | None = None) -> Lease:
        if stage is not None:
            lease = _join(stage, step)
        else:
            lease = open_found(find_qpu(named, config=path), step=step, config=path)
        lease.coalesce, lease.budget = limits, budget
        return lease

    if not isinstance(qpu, list):
        first_name = qpu if joined is None else joined.qpu
        plan = plan_fallback(first_name, fallback, config=path)
        if plan is None:
            return open_one(qpu, joined)
        if limits is not None:
            raise RequestError(_NOT_BOTH)
        chain = Fallback(plan, lambda each: open_one(each, joined if each == first_name else None))
        first = cast("Lease", chain.open_first())
        first.fallback = chain
        return first
    if fallback:
        raise RequestError(
            f"fallback={fallback!r}: only one QPU can have a fallback, not {len(qpu)} that are "
            "leased together. Leave it out, or open a lease of each."
        )
    _require_distinct(qpu)
    own = [each for each in qpu if joined is None or each != joined.qpu]
    found = {name: find_qpu(name, config=path) for name in own}
    # If one cannot be opened, those opened before it are released.
    with ExitStack() as stack:
        leases = [
            stack.enter_context(
                open_found(found[name], step=step, config=path)
                if joined is None or name in found
                else _join(joined, step)
            )
            for name in qpu
        ]
        stack.pop_all()
    for lease in leases:
        lease.coalesce, lease.budget = limits, budget
    return LeaseSet(leases)


def _require_distinct(qpus: list[str]) -> None:
    twice = next((name for name in qpus if qpus.count(name) > 1), None)
    if not qpus or twice is not None:
        what = "no QPU named" if twice is None else f"QPU {twice!r} named twice"
        raise RequestError(f"{what}: must be one or more QPUs, each named once. Correct the list.")


def _find_config() -> Path | None:
    try:
        return find_config()
    except ConfigError:  # a job's environment may define its QPUs without the file
        return None


def open_found(
    found: JobQPU,
    *,
    step: str | None,
    config: Path | None,
    settings: Mapping[str, str] | None = None,
) -> Lease:
    """Open a lease on a QPU that `find_qpu` has found.

    Args:
        found: The QPU.
        step: As `open_lease` takes it.
        config: As `open_lease` takes it.
        settings: Settings of QRMI's for a session that is acquired, without the `NAME_` prefix.
    """
    _prepare()
    if found.token is not None:
        return Lease(HeldQPU.adopt(found, step=_name(step)), step=step)
    if is_emulated(found.name):  # neither the site nor its scheduler has a say in it
        return _open_emulated(found, step)
    require_in_service(found.name)
    require_grant(found.name)
    path = config or _find_config()
    return run_uninterrupted(
        lambda stop: _acquire(found, step, path, stop, settings or {}),
        Lease.release,
        late_seconds=current_kill_wait().command,
    )


def _open_emulated(found: JobQPU, step: str | None) -> Lease:
    from qrmi_workflows.lease.emulated import PrivateEmulator  # most leases are on real QPUs

    def open_(stop: threading.Event) -> Lease:
        emulator = PrivateEmulator.start(found, stop)
        try:
            held = HeldQPU.acquire(
                emulator.qpu, step=_name(step), config=None, stop=stop, emulator=emulator
            )
        except BaseException:
            emulator.stop()
            raise
        lease = Lease(held, step=step)
        release_at_exit(lease, lease.release)
        return lease

    return run_uninterrupted(open_, Lease.release, late_seconds=current_kill_wait().command)


def _prepare() -> None:
    # These refuse a wrong $QPU_KILL_WAIT, site.toml or $QPU_ON_STOP before anything is acquired or
    # adopted.
    current_kill_wait()
    this_scheduler()
    on_stop()
    # Before acquiring anything: by default, SIGTERM would end the process immediately.
    exit_on_sigterm()


def _join(stage: Stage, step: str | None) -> Lease:
    from qrmi_workflows.lease.membership import Membership

    _prepare()

    def join(stop: threading.Event) -> Lease:
        lease = Lease(HeldQPU.join(Membership.join(stage, stop)), step=step)
        release_at_exit(lease, lease.release)
        return lease

    return run_uninterrupted(join, Lease.release, late_seconds=current_kill_wait().command)


def _name(step: str | None) -> str:
    return step or os.environ.get(QPU_STEP, "")


def _acquire(
    found: JobQPU,
    step: str | None,
    config: Path | None,
    stop: threading.Event,
    settings: Mapping[str, str],
) -> Lease:
    name = _name(step)
    # An orphaned lease on an exclusive QPU would block this one until its session ends. One whose
    # tasks are still running is not released, but taken over: with it, they go on.
    orphan = _Orphan(found, name)
    reap(patience=_REAP_SECONDS, take_over=orphan)
    if orphan.taken is not None:
        held = HeldQPU.take_over(found, orphan.taken)
    else:
        # Only now: the file of an orphaned lease names the QPU as the configuration defines it.
        found = replace(found, environment={**found.environment, **settings})
        held = HeldQPU.acquire(found, step=name, config=config, stop=stop)
    lease = Lease(held, step=step)
    release_at_exit(lease, lease.release)
    return lease


class _Orphan:
    """Takes over one orphaned lease of a QPU, if there is any.

    Args:
        qpu: The QPU.
        step: The step that needs it.
    """

    def __init__(self, qpu: JobQPU, step: str) -> None:
        self._qpu = qpu
        self._step = step
        self.taken: OpenLease | None = None

    def __call__(self, opened: OpenLease, environment: Mapping[str, str]) -> bool:
        """Take a lease over if it is of the same QPU, under the same account."""
        if self.taken is not None or (opened.qpu, opened.type) != (self._qpu.name, self._qpu.type):
            return False
        if _with_mode(environment, opened) != {**self._qpu.environment, **_mode_of(self._qpu)}:
            return False
        self.taken = opened.take_over(self._step)
        logger.warning(
            "taking over the lease of QPU %r that an earlier run has left: its tasks are still "
            "running",
            opened.qpu,
        )
        return True


def _with_mode(environment: Mapping[str, str], opened: OpenLease) -> dict[str, str]:
    """Return settings with the mode of a lease's session, which a keeper may have chosen."""
    known = registered_type(opened.type)
    if known is None or known.mode_setting is None or opened.mode is None:
        return dict(environment)
    return {**environment, known.mode_setting: opened.mode}


def _mode_of(qpu: JobQPU) -> dict[str, str]:
    """Return the setting of a QPU's mode, also if it is the default."""
    known = registered_type(qpu.type)
    mode = None if known is None else known.session_mode(qpu.environment)
    return {} if known is None or known.mode_setting is None else {known.mode_setting: str(mode)}
