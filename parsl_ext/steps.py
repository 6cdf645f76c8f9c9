"""The names under which the tasks of app calls are journaled.

A call that the caller names is a step of this program and this app. Another run of the program
finds the tasks of an attempt that failed or was interrupted. Once the step has succeeded, its tasks
are archived, and no other call finds them.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parsl.dataflow.futures import AppFuture

from qrmi_workflows.config.variables import QPU_ALIVE, QPU_ON_STOP
from qrmi_workflows.errors import JournalError, QPUError, RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord

__all__ = [
    "FullName",
    "archive_step",
    "found_tasks",
    "full_name",
    "new_name",
    "start_numbered",
    "stop_variables",
]

logger = logging.getLogger(__name__)

_NEW_NAME = re.compile(r"app .+ [0-9a-f-]{36}( without retries)?")


class FullName(str):
    """A step's name in full; that of another command may be the same on purpose."""

    __slots__ = ()


def full_name(name: object, body: Callable[..., Any]) -> str:
    """Return the name of a step: the caller's name for the call, the app, and the program.

    Two apps or two programs may use the same name.

    Raises
    ------
    RequestError
        The caller's name is not a string, or is empty.
    """
    if isinstance(name, FullName):
        return name
    if not isinstance(name, str) or not name.strip():
        raise RequestError(
            f"qpu_step={name!r}: must be a non-empty string. Name the call, or leave it out."
        )
    main = sys.modules["__main__"]
    # An interactive session has no file; its folder must do.
    program = Path(getattr(main, "__file__", None) or Path.cwd()).resolve()
    module = "" if body.__module__ == "__main__" else f"{body.__module__}."
    return f"{name} (app {module}{body.__qualname__} of {program})"


def new_name(body: Callable[..., Any], *, is_retried: bool) -> str:
    """Return a step's name for one call, which no other run of the program can know.

    Parameters
    ----------
    body : callable
        The app's function.
    is_retried : bool
        Whether Parsl repeats the call if its block is lost.
    """
    name = getattr(body, "__name__", type(body).__name__)  # a `partial` has none
    return f"app {name} {uuid.uuid4()}{'' if is_retried else ' without retries'}"


def stop_variables(step: str) -> dict[str, str | None]:
    """Return the variables that say what becomes of a step's tasks if its block is lost.

    A block leaves tasks to the retry as long as its program lives. A task of a step with a name of
    its own is left in any case, because another run of the program finds it. If there is no retry
    and no such name, nobody does.
    """
    new = _NEW_NAME.fullmatch(step)
    if new is None:
        return {QPU_ALIVE: None}
    return {QPU_ON_STOP: "cancel"} if new[1] else {}


def found_tasks(step: str) -> list[TaskRecord]:
    """Return the tasks that an unsuccessful attempt has left, and report them."""
    named = Journal().step(step)
    try:
        found = [] if named.is_running() else named.records()  # another program's, if it is running
    except JournalError as error:  # the worker reports it too, and then the call fails
        logger.warning("%s", error)
        return []
    if found:
        logger.warning(
            "step %r reuses %d task(s) of an earlier attempt that did not succeed; what was "
            "submitted then is not submitted again",
            step,
            len(found),
        )
    return found


def archive_step(step: str) -> None:
    """Archive the journal records of a finished call: no other call will find them."""
    try:
        Journal().archive(step)
    except QPUError as error:  # this only costs some disk space
        logger.warning("could not archive the journal records of step %r: %s", step, error)


_SUCCEEDED = object()
_lock = threading.Lock()
_calls: dict[tuple[str, str], list[object]] = {}
"""The calls of each name in each run of a program: futures, or `_SUCCEEDED`."""


def start_numbered(run: str, name: str, start: Callable[[str], AppFuture]) -> AppFuture:
    """Start a call of a named step; archive its tasks once it has succeeded.

    Equal calls in one run are steps of their own: they are numbered, and another run of the program
    numbers them in the same way. Only a call that has failed hands its number, and so its tasks, on
    to the next call.

    Parameters
    ----------
    run : str
        Parsl's id of this run.
    name : str
        The step's full name.
    start : callable
        Starts the call, given the name with its number.
    """
    with _lock:
        calls = _calls.setdefault((run, name), [])
        number = next((n for n, call in enumerate(calls) if _has_failed(call)), len(calls))
        step = name if number == 0 else f"{name} #{number + 1}"
        future = start(step)
        calls[number : number + 1] = [future]

    def settle(done: Future[Any]) -> None:
        if done.exception() is None:
            archive_step(step)
            with _lock:
                calls[number] = _SUCCEEDED

    future.add_done_callback(settle)
    return future


def _has_failed(call: object) -> bool:
    # Asked of the future itself: its callbacks run only after its waiters have been woken.
    return isinstance(call, Future) and call.done() and call.exception() is not None
