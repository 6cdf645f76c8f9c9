"""A Parsl launcher that runs a block's workers under one lease."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path

import typeguard
from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

from parsl_ext.alive_file import give_up, keep_alive
from qrmi_workflows.config.constraints import parse_fallback
from qrmi_workflows.config.variables import QPU_ON_STOP, OnStop
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.stage_folder import require_stage_name
from qrmi_workflows.schedulers.several import qpu_names

__all__ = ["LeaseLauncher"]

# The option of Parsl's process_worker_pool.py, as HTEX renders it (Parsl 2026.10.26).
_DRAIN_PERIOD = re.compile(r"(?<=--drain_period=)(\d+|None)\b")
_DRAIN_AS_REQUESTED = "drain_period=$(({requested} - QPU_JOB_USED))"
_DRAIN_BEFORE_TIME_LIMIT = """drain_period=None
if [ -n "$QPU_JOB_LEFT" ]; then
    last_seconds=$(((QPU_JOB_USED + QPU_JOB_LEFT) / 10))
    drain_period=$((QPU_JOB_LEFT - (last_seconds < 60 ? last_seconds : 60)))
fi"""
# Parsl takes 0 for "never drain", so a time in the past becomes one second.
_DRAIN_NOW_IF_LATE = '[ "$drain_period" = None ] || [ "$drain_period" -gt 0 ] || drain_period=1'


class LeaseLauncher(Launcher):
    """Runs a block's workers under one lease, and always releases it.

    The block's own job becomes the supervisor, `qpu lease exec`, outside of srun. It adopts the
    lease that the site acquired for the job, or acquires one, and runs the inner launcher's command
    under it. It releases the lease when that command ends, at SIGTERM, or when the submitting
    process has died.

    `drain_period` counts from the start of the block's job, not from the start of the worker pool:
    acquiring the lease may take a while. Without a `drain_period`, the pool takes no new calls in
    the last minute before the job's time limit, or in the last tenth of a shorter job, because
    they would be killed with the job.

    Parameters
    ----------
    qpu : str | None
        The QPU's name, or several joined with `+`. Leave it out if the provider is a
        `QPUProvider`, which knows it, or if a stage is given.
    inner : Launcher | None
        The launcher that starts the workers. If None, Parsl's `SingleNodeLauncher`.
    on_stop : {"leave", "cancel"} | None
        What happens to running tasks if the block is lost: they are left for the retry, or
        cancelled. If None, what `$QPU_ON_STOP` says in the block's job, else "leave".
    stage : str | None
        The name of an open stage, whose lease the block uses instead of one of its own. Leave it
        out if the provider is a `QPUProvider`, which opens its stage by itself.
    fallback : sequence of str
        The QPUs that calls go on with if the QPU goes away, in order, as far as the block may use
        them. Leave it out if the provider is a `QPUProvider`, which has `qpu_fallback`.
    """

    @typeguard.typechecked
    def __init__(
        self,
        qpu: str | None = None,
        inner: Launcher | None = None,
        on_stop: OnStop | None = None,
        stage: str | None = None,
        fallback: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.fallback = parse_fallback(fallback or None)
        self.qpu = qpu
        self.inner = SingleNodeLauncher() if inner is None else inner
        self.on_stop = on_stop
        self.stage = None if stage is None else require_stage_name(stage)
        self.candidates: tuple[str, ...] | None = None
        self._alive: list[Path] = []

    @property
    def chosen(self) -> tuple[str, ...]:
        """The QPUs that were chosen for its blocks from `candidates`, if they were."""
        return () if self.candidates is None or self.qpu is None else qpu_names(self.qpu)

    def for_qpu(self, qpu: str, stage: str | None = None) -> LeaseLauncher:
        """Return such a launcher for the blocks of a provider, which names their QPU and stage.

        Raises
        ------
        RequestError
            This launcher leases another QPU, or joins another stage.
        """
        if self.qpu is not None and set(qpu_names(self.qpu)) != set(qpu_names(qpu)):
            raise RequestError(
                f"the blocks are for QPU {qpu!r}, but their launcher leases "
                f"{self.qpu!r}: both must be the same. Leave out `qpu` of the `LeaseLauncher`."
            )
        if self.stage not in (None, stage):
            raise RequestError(
                f"the blocks are for {f'stage {stage!r}' if stage else 'no stage'}, but their "
                f"launcher joins stage {self.stage!r}. Leave out `stage` of the `LeaseLauncher`, "
                "and give it to the provider."
            )
        return LeaseLauncher(qpu, self.inner, self.on_stop, stage, self.fallback)

    def __call__(
        self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = ""
    ) -> str:
        """Wrap a block's command.

        Returns
        -------
        str
            Lines of a job script. The last one replaces the shell with the supervisor.
        """
        alive = None
        if script_dir:  # as in all providers of Parsl, if it is Parsl that calls them
            alive = Path(script_dir, f"block-{uuid.uuid4().hex[:12]}.alive").absolute()
            keep_alive(alive)
            self._alive.append(alive)
        return self.wrap(command, tasks_per_node, nodes_per_block, script_dir, alive=alive)

    def give_up(self) -> None:
        """Tell the blocks that this launcher has started that no call will be repeated."""
        for alive in self._alive:
            give_up(alive)
        self._alive.clear()

    def wrap(
        self,
        command: str,
        tasks_per_node: int,
        nodes_per_block: int,
        script_dir: str,
        *,
        alive: Path | None,
        fallback: Sequence[str] | None = None,
    ) -> str:
        """Wrap the command of a block that ends when `alive` is no longer touched.

        `fallback` has the options of `qpu lease exec` for that; by default, those of this launcher.
        """
        command, drain = _count_drain_from_job_start(command)
        inner = self.inner(command, tasks_per_node, nodes_per_block, script_dir)
        options = ["--job-time"] if drain else []
        if self.qpu is not None:
            options.append(f"--qpu={self.qpu}")
        if self.stage is not None:
            options += [f"--stage={self.stage}", "--stop-with-stage"]
        if alive is not None:
            options.append(f"--alive={alive}")
        own = [f"--fallback={','.join(self.fallback)}"] if self.fallback else []
        options += own if fallback is None else fallback
        on_stop = self.on_stop or f"${{{QPU_ON_STOP}:-leave}}"
        # The here-document is quoted, so that the shell does not expand it, and its end marker is
        # unique, so that no line of the command matches it.
        end = f"BLOCK_{uuid.uuid4().hex}"
        return (
            f"export {QPU_ON_STOP}={on_stop}\n"
            f"block_command=$(cat <<'{end}'\n{drain}{inner}\n{end}\n)\n"
            f'exec qpu lease exec {shlex.join(options)} -- bash -c "$block_command"\n'
        )


def _count_drain_from_job_start(command: str) -> tuple[str, str]:
    """Replace `--drain_period` in a pool's command; return it and the lines to run before it."""
    period = _DRAIN_PERIOD.search(command)
    if period is None:
        return command, ""
    if period[1] == "None":
        compute = _DRAIN_BEFORE_TIME_LIMIT
    else:
        compute = _DRAIN_AS_REQUESTED.format(requested=period[1])
    lines = f"{compute}\n{_DRAIN_NOW_IF_LATE}\nexport drain_period\n"
    return _DRAIN_PERIOD.sub("$drain_period", command), lines
