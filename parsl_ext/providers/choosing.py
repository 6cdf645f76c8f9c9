"""Blocks whose QPUs are chosen: until then, they wait without a job."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

from parsl.jobs.states import JobState as BlockState
from parsl.jobs.states import JobStatus as BlockStatus
from parsl.launchers.base import Launcher
from parsl.providers.errors import SubmitException

from parsl_ext.launcher import LeaseLauncher
from parsl_ext.providers.base import QPUProvider
from parsl_ext.providers.choices import BlockChoice
from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.choice.reasons import choice_variable
from qrmi_workflows.config.constraints import QPUConstraint, plain_names
from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import QPUError, RequestError
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.several import granted_policy

__all__ = ["ChoosingProvider"]


class ChoosingProvider(QPUProvider):
    """Blocks that hold QPUs by name, or any that satisfy a request.

    Parameters
    ----------
    constraints : sequence of QPUConstraint
        What is asked for, for each QPU of a block; none for classical blocks of a stage.
    count : int
        The number of the scheduler's units of each QPU.
    **options
        As in `QPUProvider`.
    """

    def __init__(self, *, constraints: Sequence[QPUConstraint], count: int, **options: Any) -> None:
        names = plain_names(constraints)
        self._choice: BlockChoice | None = None
        if names is None:
            _require_choosable(options.get("stage"), options.get("launcher"))
            asker = Asker(
                for_job=True,
                count=QPURequest(qpu="", count=count).count,  # refuses a wrong number
                account=options.get("account"),
                partition=options.get("partition"),
                key=uuid.uuid4().hex,
            )
            self._choice = BlockChoice(constraints, asker, options.get("site"))
            super().__init__(request=None, chooses=True, **options)
            self.count = count
        else:
            requests = [QPURequest(qpu=name, count=count) for name in names]
            request = next(iter(requests), None)
            super().__init__(request=request, also=requests[1:], **options)
        self._waiting: dict[str, tuple[str, int, str]] = {}  # the arguments of `submit`, by block
        self._jobs: dict[str, str] = {}  # of blocks that have waited, by block
        self._failed: dict[str, BlockStatus] = {}
        self._lock = threading.Lock()  # the poller's thread submits, and the program's cancels

    @property
    def candidates(self) -> tuple[str, ...] | None:
        """All QPUs that the blocks may get by the choice; `None` if they are asked for by name."""
        return None if self._choice is None else self._choice.candidates

    @property
    def chosen(self) -> tuple[str, ...]:
        """The QPUs that all blocks get by the choice; empty before it."""
        return tuple(request.qpu for request in self._requests)

    def expect_step(self, step: str) -> None:
        """Let the choice take the tasks of a step into account, which these blocks will run."""
        if self._choice is not None:
            self._choice.expect(step)

    @property
    def qpu_policies(self) -> list[QPUPolicy]:
        """As in `QPUProvider`; before the choice, the QPU with most lanes, as often as needed."""
        if self._choice is None or self._requests:
            return super().qpu_policies
        requests = (QPURequest(qpu=name, count=self.count) for name in self._choice.candidates)
        policies = [granted_policy(each, self._policy) for each in requests]
        most = max(policies, key=lambda policy: policy.lanes, default=None)
        return [] if most is None else [most] * len(self._choice.constraints)

    def check(self) -> None:
        """Refuse what cannot be granted, as `QPUProvider` does, or what no QPU can ever satisfy."""
        if self._choice is None:
            super().check()
        else:
            self._choice.require_possible()

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.qpu") -> str:
        """Submit a block and return its job's id; another id while no QPU can be chosen.

        Raises
        ------
        SubmitException
            As in `QPUProvider`, or no QPU can ever satisfy the request.
        """
        if self._is_chosen(job_name):
            return super().submit(command, tasks_per_node, job_name)
        block = f"waiting-{uuid.uuid4().hex[:12]}"
        with self._lock:
            self._waiting[block] = command, tasks_per_node, job_name
        return block

    def status(self, job_ids: Sequence[str]) -> list[BlockStatus]:
        """Return the states of blocks; submit those that have waited for the choice."""
        self._submit_waiting()
        jobs = [self._jobs.get(each, each) for each in job_ids]
        known = [job for job in jobs if job in self.resources]
        found = dict(zip(known, super().status(known), strict=True))
        return [found.get(job) or self._status_of(job) for job in jobs]

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Cancel blocks, as in `QPUProvider`, or let them wait no longer."""
        with self._lock:
            for block in job_ids:
                if self._waiting.pop(block, None) is not None:
                    self._failed[block] = BlockStatus(BlockState.CANCELLED)
            if self._choice is not None and not self._waiting:
                self._choice.give_up()
            jobs = [self._jobs.get(each, each) for each in job_ids]
        known = [job for job in jobs if job in self.resources]
        done = dict(zip(known, super().cancel(known), strict=True))
        return [done.get(job, True) for job in jobs]

    def moved_jobs(self) -> set[str]:
        """As in `QPUProvider`, by the ids that `submit` has returned."""
        blocks = {job: block for block, job in self._jobs.items()}
        return {blocks.get(job, job) for job in super().moved_jobs()}

    def _variables(self) -> dict[str, str]:
        return {} if self._choice is None else choice_variable(self._choice.choices)

    def _is_chosen(self, job_name: str) -> bool:
        if self._choice is None or self._requests:
            return True
        try:
            if not self._choice.make():
                return False
            requests = [QPURequest(qpu=each, count=self.count) for each in self._choice.qpus]
            self.launcher: Launcher = self._hold(requests, self.launcher)
        except QPUError as error:
            raise SubmitException(job_name, str(error)) from error
        return True

    def _submit_waiting(self) -> None:
        with self._lock:
            for block, (command, tasks_per_node, job_name) in list(self._waiting.items()):
                try:
                    if not self._is_chosen(job_name):
                        return
                    self._jobs[block] = super().submit(command, tasks_per_node, job_name)
                except SubmitException as error:
                    self._failed[block] = BlockStatus(BlockState.FAILED, str(error))
                del self._waiting[block]

    def _status_of(self, block: str) -> BlockStatus:
        if (failed := self._failed.get(block)) is not None:
            return failed
        reason = "" if self._choice is None else self._choice.reason
        return BlockStatus(BlockState.PENDING, reason or "a QPU is being chosen")


def _require_choosable(stage: object, launcher: Launcher | None) -> None:
    """Refuse what needs to know the QPU before it is chosen."""
    if stage is not None:
        raise RequestError(
            f"stage {getattr(stage, 'name', stage)!r}: its QPU must be named, without "
            "alternatives, patterns or conditions. Name it, or leave out `stage`."
        )
    if isinstance(launcher, LeaseLauncher) and launcher.qpu is not None:
        raise RequestError(
            f"the QPU of the blocks is to be chosen, but their launcher leases {launcher.qpu!r}. "
            "Leave out `qpu` of the `LeaseLauncher`."
        )
