"""Send a named call to the executor whose blocks hold the QPU that has its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parsl.executors.base import ParslExecutor

from parsl_ext.providers.choosing import ChoosingProvider
from parsl_ext.qpus import chooser_of, qpus_of
from qrmi_workflows.choice.resumed import has_been_sent
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.errors import RequestError
from qrmi_workflows.journal.record import TaskRecord

__all__ = ["labels_with_tasks"]


def labels_with_tasks(
    step: str, records: Iterable[TaskRecord], executors: Mapping[str, ParslExecutor]
) -> list[str]:
    """Return the labels of the executors on whose QPUs a step has tasks.

    An executor whose QPU is still to be chosen gets one that has.

    Raises
    ------
    RequestError
        An executor might have got such a QPU, but another one was chosen: there, the tasks would
        not be found, and paid for again.
    """
    all_records = list(records)
    sent = {record.qpu for record in all_records if has_been_sent(record)}
    found, missed = [], []
    for label, executor in executors.items():
        chooser, offered = chooser_of(executor), {*qpus_of(executor)}
        if not all(map(is_emulated, offered)):
            # What was emulated has not been paid for, and keeps no call from a real QPU.
            offered = {name for name in offered if not is_emulated(name)}
        if not offered & {record.qpu for record in all_records}:
            continue
        if chooser is None or not chooser.chosen or sent & {*chooser.chosen}:
            found.append(label)
            provider = getattr(executor, "provider", None)
            if isinstance(provider, ChoosingProvider):
                provider.expect_step(step)
        elif sent & offered:
            missed.append((label, "+".join(chooser.chosen)))
    if missed and not found:
        label, chosen = missed[0]
        raise RequestError(
            f"step {step!r} has tasks on QPU {', '.join(sorted(sent))}, but {chosen} was chosen "
            f"for the blocks of executor {label!r}, where they would be paid for again. Name the "
            "QPU that has them instead of a choice, or forget them: `qpu journal prune --step`."
        )
    return found
