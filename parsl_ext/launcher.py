"""A Parsl launcher that runs a block's workers under one lease."""

from __future__ import annotations

import re
import shlex
import uuid
from pathlib import Path

import typeguard
from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

__all__ = ["ALIVE_FILE", "LeaseLauncher"]

ALIVE_FILE = "submit-side.alive"
"""In a run's script folder; `QPUExecutor` touches it for as long as the submit side lives."""

_DRAIN_PERIOD = re.compile(r"(?<=--drain_period=)(\d+|None)\b")
_FROM_THE_START = "QPU_DRAIN=$(({asked} - QPU_JOB_USED))"
_BEFORE_THE_END = """QPU_DRAIN=None
if [ -n "$QPU_JOB_LEFT" ]; then
    QPU_LAST=$(((QPU_JOB_USED + QPU_JOB_LEFT) / 10))
    QPU_DRAIN=$((QPU_JOB_LEFT - (QPU_LAST < 60 ? QPU_LAST : 60)))
fi"""
_AT_ONCE_IF_LATE = '[ "$QPU_DRAIN" = None ] || [ "$QPU_DRAIN" -gt 0 ] || QPU_DRAIN=1'


class LeaseLauncher(Launcher):
    """Holds one lease for a whole block, outside srun, and gives it back whatever the workers do.

    The block's own job becomes the supervisor (`qpu lease exec`): it adopts the lease that the
    site acquired for the job, or acquires one; runs the inner launcher's command under it; and
    releases it when that ends, at SIGTERM, or when the submit side is dead.

    A pool's `drain_period` counts from the start of the block's job here, however long the lease
    took to acquire. Without one, the pool takes no more calls in the last minute of the job's time
    limit, or the last tenth of a short one: they would be killed with the job.

    Parameters
    ----------
    qpu : str | None
        The QPU's name. A `QPUProvider` fills it in when it is None.
    inner : Launcher | None
        Starts the workers, under the lease. Parsl's `SingleNodeLauncher` when it is None.
    """

    @typeguard.typechecked
    def __init__(self, qpu: str | None = None, inner: Launcher | None = None) -> None:
        super().__init__()
        self.qpu = qpu
        self.inner = SingleNodeLauncher() if inner is None else inner

    def __call__(
        self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = ""
    ) -> str:
        """Wrap a block's command.

        Returns
        -------
        str
            Lines of a job script; the last replaces the shell by the supervisor.
        """
        drained, drain = _drain_in_time(command)
        inner = self.inner(drained, tasks_per_node, nodes_per_block, script_dir)
        end = f"BLOCK_{uuid.uuid4().hex}"
        options = ["--job-time"] if drain else []
        if self.qpu is not None:
            options.append(f"--qpu={self.qpu}")
        alive = Path(script_dir, ALIVE_FILE).absolute()
        if alive.exists():
            options.append(f"--alive={alive}")
        return (
            f"QPU_BLOCK=$(cat <<'{end}'\n{drain}{inner}\n{end}\n)\n"
            f'exec qpu lease exec {shlex.join(options)} -- bash -c "$QPU_BLOCK"\n'
        )


def _drain_in_time(command: str) -> tuple[str, str]:
    """Let a pool drain at a time of its job, not of its own: the lines that say when come first."""
    asked = _DRAIN_PERIOD.search(command)
    if asked is None:
        return command, ""
    when = _BEFORE_THE_END if asked[1] == "None" else _FROM_THE_START.format(asked=asked[1])
    lines = f"{when}\n{_AT_ONCE_IF_LATE}\nexport QPU_DRAIN\n"
    return _DRAIN_PERIOD.sub("$QPU_DRAIN", command), lines
