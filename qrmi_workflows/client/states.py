"""Ask the vendors for the states of their QPUs: in parallel, and bounded in time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from qrmi_workflows.client.failures import TRY_LATER
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.qpus import QPUDefinition
from qrmi_workflows.errors import QPUError

__all__ = [
    "Answer",
    "Definition",
    "Outcome",
    "ask_all",
    "ask_in_parallel",
    "ask_state",
    "read_answer",
]

_THREADS = 32

D = TypeVar("D")
T = TypeVar("T")

Definition = QPUDefinition | JobQPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A vendor's answer about its QPU.

    Attributes:
        state: Its word for the QPU's state (`online`, `paused`, `offline`).
        is_operational: Whether the QPU takes tasks and executes them.
        reason: Why it is not, if the vendor says so.
        is_full: Whether the vendor takes no more tasks at the moment.
        queue: How many tasks the vendor has for the QPU, if it says so.
    """

    state: str
    is_operational: bool
    reason: str = ""
    is_full: bool = False
    queue: int | None = None


Outcome = Answer | str


def ask_state(definition: Definition, *, seconds: float) -> Answer:
    """Ask a vendor for its QPU's state.

    Raises:
        QPUError: The vendor did not tell.
    """
    limits = {"status": seconds}
    resource = QRMIResource(
        definition.name, definition.type, definition.environment, deadlines=limits
    )
    try:
        status = resource.status()
    finally:
        resource.close()
    return read_answer(status)


def read_answer(status: object) -> Answer:
    """Translate QRMI's `ResourceStatus`."""
    state = str(getattr(status, "status", "")).rpartition(".")[2].lower()
    capacity = getattr(status, "capacity", None)
    reason = str(getattr(status, "status_reason", None) or "")
    return Answer(
        state=state or "unknown",
        is_operational=state == "online",
        # For IQM, QRMI says "healthy updated at …" in any state (0.26.4), which changes all along.
        reason="" if reason.startswith("healthy ") else reason,
        is_full=getattr(capacity, "available_slots", None) == 0,
        queue=_count_tasks(status, capacity),
    )


def _count_tasks(status: object, capacity: object) -> int | None:
    pending = getattr(status, "pending_job_count", None)
    if pending is not None:
        return int(pending)
    # IBM Quantum System has no queue, but lanes, which tasks are in.
    slots, free = (getattr(capacity, key, None) for key in ("max_slots", "available_slots"))
    return None if slots is None or free is None else max(0, int(slots) - int(free))


def ask_all(
    definitions: Mapping[str, Definition],
    *,
    seconds: float,
    in_all: float,
    ask: Callable[[Definition], Answer] | None = None,
) -> dict[str, Outcome]:
    """Ask all vendors for the states of their QPUs; see `ask_in_parallel`."""
    one = ask or (lambda definition: ask_state(definition, seconds=seconds))
    return ask_in_parallel(one, definitions, seconds=seconds, in_all=in_all)


def ask_in_parallel(
    one: Callable[[D], T], definitions: Mapping[str, D], *, seconds: float, in_all: float
) -> dict[str, T | str]:
    """Ask all vendors; return the answers, or why there is none, by QPU.

    Args:
        one: Asks about one QPU.
        definitions: The QPUs. Those that come first are asked first.
        seconds: How long each vendor may take, for the message.
        in_all: How long all of them may take. Those that were not asked in that time are left out.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in definitions:
        waiting.put(name)
    answers: dict[str, Future[T | str]] = {name: Future() for name in definitions}
    end = time.monotonic() + in_all

    def work() -> None:
        # Not a pool: that would be waited for at the end of the process.
        with suppress(queue.Empty):
            while time.monotonic() < end:
                name = waiting.get_nowait()
                future = answers[name]
                future.set_running_or_notify_cancel()
                future.set_result(_outcome(one, definitions[name]))

    for _ in range(min(_THREADS, len(definitions))):
        threading.Thread(target=work, daemon=True).start()
    return dict(_collect(answers, end, seconds))


def _outcome(ask: Callable[[D], T], definition: D) -> T | str:
    try:
        return ask(definition)
    except QPUError as error:
        return str(error).removesuffix(TRY_LATER).strip()
    except BaseException as error:  # a vendor's client may raise anything
        return f"{type(error).__name__}: {error}"


def _collect(
    answers: Mapping[str, Future[T | str]], end: float, seconds: float
) -> Iterable[tuple[str, T | str]]:
    for name, future in answers.items():
        try:
            yield name, future.result(max(0.0, end - time.monotonic()))
        except TimeoutError:
            if future.running():
                yield name, f"no answer within {seconds:g} s"
