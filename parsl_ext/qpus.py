"""Which QPUs the apps of a program run on, as its executors and its environment say."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol, cast

from parsl.executors.base import ParslExecutor

from qrmi_workflows.config.constraints import parse_fallback
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.variables import QPU_FALLBACK
from qrmi_workflows.errors import ConfigError, ResourceError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.schedulers.several import qpu_names

__all__ = ["MEMO_KEY", "Chooser", "chooser_of", "memo_key", "qpus_of", "types_of"]

logger = logging.getLogger(__name__)

MEMO_KEY = "qpu_memo_key"
"""The keyword argument with the key: Parsl memoises a call by its function and arguments."""


def qpus_of(executor: ParslExecutor) -> tuple[str, ...]:
    """Return the names of the QPUs that an executor's blocks hold; empty if that is not known.

    If they are chosen, these are all that may be chosen: they are the same in every run.
    """
    if (chooser := chooser_of(executor)) is not None:
        return chooser.candidates or ()
    provider: Any = getattr(executor, "provider", None)
    for holder in (provider, getattr(provider, "launcher", None)):
        if named := getattr(holder, "qpu", None):
            return qpu_names(named)
    # Workers that start in this process's own job inherit its leases.
    return tuple(name for name, carried in read_job().items() if carried.token is not None)


class Chooser(Protocol):
    """What knows which QPUs an executor's blocks get, if they are chosen."""

    @property
    def candidates(self) -> tuple[str, ...] | None:
        """All that may be chosen; `None` if nothing is."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Those that were; empty before the choice."""


def chooser_of(executor: ParslExecutor) -> Chooser | None:
    """Return the provider or launcher of an executor for whose blocks QPUs are chosen, if any."""
    provider: Any = getattr(executor, "provider", None)
    for holder in (provider, getattr(provider, "launcher", None)):
        if getattr(holder, "candidates", None) is not None:
            return cast("Chooser", holder)
    return None


def fallback_of(executor: ParslExecutor) -> tuple[str, ...]:
    """Return the QPUs that an executor's calls may move to.

    Blocks inherit the environment of the program, and with it `$QPU_FALLBACK`.
    """
    provider: Any = getattr(executor, "provider", None)
    named = parse_fallback(getattr(provider, "qpu_fallback", None))
    named = named or getattr(getattr(provider, "launcher", None), "fallback", ())
    return named or parse_fallback(os.environ.get(QPU_FALLBACK) or None)


def memo_key(executors: Iterable[ParslExecutor], qpu: str | None = None) -> str:
    """Return what tells a call on these executors from an equal call on other QPUs.

    It names all QPUs that the call may run on, with their types and endpoints: a call that may run
    on either of two QPUs gets a result of either, but never that of a third one, or of an emulated
    QPU with a real one's name. If a QPU is not known here, or a call may run on a real QPU or on an
    emulated one, the key is new each time, so that no result is reused.

    Parameters
    ----------
    executors : iterable of ParslExecutor
        The executors that the call may run on.
    qpu : str | None
        The QPU that the app names.
    """
    names: set[str] = set()
    for executor in executors:
        held = (qpu,) if qpu is not None else qpus_of(executor)
        if not held:
            logger.warning(
                "a call on executor %r is not memoised: its QPU is not known here. Name it: "
                "`@qpu_app(qpu=…)`, or `LeaseLauncher(qpu=…)`.",
                executor.label,
            )
            return f"unknown {uuid.uuid4()}"
        names.update(held, fallback_of(executor))
    # A launcher may leave the choice to the lease in the block.
    if len({is_emulated(each) for name in names for each in name.split("|")}) > 1:
        return f"unknown {uuid.uuid4()}"
    return ", ".join(f"{name} {_identity(name)}".rstrip() for name in sorted(names))


def types_of(
    executors: Iterable[ParslExecutor], qpu: str | None = None, *, run: str
) -> set[str | None]:
    """Return the types of the QPUs that a call on these executors may use.

    `None` is among them if a QPU, or its type, is not known here.

    Parameters
    ----------
    executors : iterable of ParslExecutor
        The executors that the call may run on.
    qpu : str | None
        The QPU that the app names.
    run : str
        The id of Parsl's run. Each QPU is looked up once in a run, because that may take a while.
    """
    if qpu is not None:
        return {_type(qpu, run)}
    held = [qpus_of(executor) for executor in executors]
    types = {_type(name, run) for names in held for name in names}
    return types if held and all(held) else types | {None}


@lru_cache(maxsize=64)
def _type(name: str, run: str) -> str | None:
    del run
    # As in `_identity`. The vendor of a dynamic definition is asked, and may not answer.
    with suppress(ConfigError, ResourceError):
        return find_qpu(name).type
    return None


def _identity(name: str) -> str:
    # The definition may be readable only in the blocks: the site's SPANK plugin reads its own.
    with suppress(ConfigError):
        return find_qpu(name).identity
    return ""
