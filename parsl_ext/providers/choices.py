"""The QPUs of a provider's blocks, where its request leaves a choice.

They are chosen when the first block is submitted. The provider's later blocks get the same ones: a
call that is retried finds its tasks only on the QPU that has them, and Parsl does not say which
calls a block is for.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from qrmi_workflows.choice.candidates import Asker, find_candidates
from qrmi_workflows.choice.choose import Choice, require_possible
from qrmi_workflows.choice.resumed import choose_for_step
from qrmi_workflows.choice.verdict import passes_by_name
from qrmi_workflows.config.constraints import QPUConstraint
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.variables import QPU_SITE
from qrmi_workflows.errors import LeaseError, QPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord

__all__ = ["BlockChoice", "records_of_program"]

# Parsl's own file, parsl.log, has only what is logged below the name `parsl`.
_run_log = logging.getLogger("parsl.qpu.choice")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0  # seconds
_BRIEFLY = 0.2  # seconds, for which Parsl's poller may be held up


class BlockChoice:
    """Chooses the QPUs of a provider's blocks, once.

    Args:
        constraints: What is asked for, for each QPU of a block.
        asker: Who asks.
        site: Path of the site policy; found as the `qpu` command finds it if `None`.
    """

    def __init__(
        self, constraints: Sequence[QPUConstraint], asker: Asker, site: str | None
    ) -> None:
        self.constraints = tuple(constraints)
        self.choices: tuple[Choice, ...] = ()
        self.reason = ""
        self.error: QPUError | None = None
        self._asker = asker
        self._steps: set[str] = set()
        self._site = {} if site is None else {QPU_SITE: site}
        self._thread: threading.Thread | None = None
        self._made, self._stop = threading.Event(), threading.Event()

    def __str__(self) -> str:
        """Return the request in words."""
        return " + ".join(map(str, self.constraints))

    @property
    def qpus(self) -> tuple[str, ...]:
        """The names of the chosen QPUs; empty before the choice."""
        return tuple(choice.qpu for choice in self.choices)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """The names of all QPUs that may be chosen, by their names, types and policies alone."""
        known = find_candidates(self._asker, self._environ).qpus
        emulated = (name for each in self.constraints for name in each.names if is_emulated(name))
        fit = (
            name
            for name, each in known.items()
            if any(passes_by_name(name, each, wanted).fits for wanted in self.constraints)
        )
        return tuple(sorted({*fit, *emulated}))

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self._site}

    def require_possible(self) -> None:
        """Refuse a request that no QPU can ever satisfy.

        Raises:
            QPUError: No QPU can.
        """
        if not self.choices:
            require_possible(self.constraints, self._asker, environ=self._environ)

    def make(self) -> bool:
        """Begin to choose, if that has not begun; return whether the choice has been made.

        Raises:
            QPUError: No QPU can ever satisfy the request, or the site's files have a mistake.
        """
        is_idle = self._thread is None or not self._thread.is_alive()
        if is_idle and not self._made.is_set():
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="qpu-choice", daemon=True)
            self._thread.start()
        self._made.wait(0.0 if self.reason else _BRIEFLY)
        if self.error is not None:
            raise self.error
        return bool(self.choices)

    def await_qpus(self, seconds: float) -> tuple[str, ...]:
        """Choose the QPUs now; wait while none can be chosen.

        Raises:
            QPUError: None could be chosen in that time, or none ever can.
        """
        self.choices = choose_for_step(
            self.constraints, self._asker, self._records(), wait=seconds, environ=self._environ
        )
        for choice in self.choices:
            _run_log.info("%s", choice)
        return self.qpus

    def expect(self, step: str) -> None:
        """Take a step's tasks into account: its call will run in one of the blocks."""
        self._steps.add(step)

    def give_up(self) -> None:
        """Choose no more: no block waits for it, for now."""
        self._stop.set()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            try:
                self.choices = choose_for_step(
                    self.constraints, self._asker, self._records(), environ=self._environ
                )
            except LeaseError as error:
                if not error.retryable:
                    self._end(error)
                    return
                if self.reason != str(error):
                    self.reason = str(error)
                    _run_log.warning("blocks wait for a QPU: %s", error)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except QPUError as error:
                self._end(error)
                return
            else:
                for choice in self.choices:
                    _run_log.info("%s", choice)
                self._made.set()
                return

    def _records(self) -> Iterator[TaskRecord]:
        """Yield the tasks that calls of this program may find."""
        for step in list(self._steps):
            yield from Journal().step(step).records()
        yield from records_of_program(besides=self._steps)

    def _end(self, error: QPUError) -> None:
        self.error = error
        self._made.set()


def records_of_program(besides: Collection[str] = ()) -> Iterator[TaskRecord]:
    """Yield the tasks that named steps of this program have left, besides those of some steps."""
    main = sys.modules["__main__"]
    program = Path(getattr(main, "__file__", None) or Path.cwd()).resolve()
    of_program, of_files = f" of {program})", f"qpu run -o {Path.cwd()}"
    for record in Journal().records(on_error=lambda _: None):
        is_own = of_program in record.step or record.step.startswith(of_files)
        if is_own and record.step not in besides:
            yield record
