"""From a lease's payload to the run of its task; imported only by processes that run tasks."""

from __future__ import annotations

from typing import Any

from qrmi_workflows.budgets.estimates import estimate_task
from qrmi_workflows.choice.reasons import why_chosen
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.step import Step
from qrmi_workflows.lease.allowances import overhead_of_tasks
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.lease.task_options import TaskOptions
from qrmi_workflows.payloads import Payload
from qrmi_workflows.tasks.costs import Allowance
from qrmi_workflows.tasks.limits import Coalesce
from qrmi_workflows.tasks.run import TaskRun

__all__ = ["estimate", "run_fields", "task_run"]


def task_run(
    held: HeldQPU,
    payload: Payload,
    *,
    step: Step,
    allowance: Allowance | None,
    coalesce: Coalesce | None,
    options: TaskOptions,
) -> TaskRun:
    """Return the run of one task under a lease."""
    fields = run_fields(held, payload, step=step, allowance=allowance, options=options)
    return TaskRun(**fields, coalesce=coalesce)


def run_fields(
    held: HeldQPU,
    payload: Payload,
    *,
    step: Step,
    allowance: Allowance | None,
    options: TaskOptions,
) -> dict[str, Any]:
    """Return the fields of a `TaskRun` that a lease and a task's options determine."""
    is_real = not is_emulated(held.qpu.name)
    return {
        "resource": held.resource,
        "resource_type": held.qpu.type,
        "identity": held.qpu.identity,
        "payload": payload,
        "step": step,
        "usage": held.usage_path,
        "default_on_stop": held.on_stop,
        "before_submission": held.note_submission,
        "require_open": held.require_open,
        "renew": held.renew,
        "deletions": held.deletions,
        "on_state": options.get("on_state"),
        "on_stop": options.get("on_stop"),
        # An emulator that has ended has accepted nothing that anybody pays for.
        "on_ambiguous": options.get("on_ambiguous", "fail") if is_real else "resubmit",
        "allowance": allowance,
        "overhead": overhead_of_tasks(held),
        "chosen": why_chosen(held.qpu.name),
    }


def estimate(held: HeldQPU, payload: Payload) -> Amount:
    """Return what a task is expected to take, from earlier tasks if there are enough."""
    from qrmi_workflows.budgets.history import read_history  # few programs ask

    return estimate_task(payload, held.qpu.type, read_history(held.qpu.name, held.qpu.identity))
