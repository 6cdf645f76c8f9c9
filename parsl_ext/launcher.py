"""A Parsl launcher that runs a block's workers under one lease."""

from __future__ import annotations

import uuid
from pathlib import Path

import typeguard
from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

__all__ = ["ALIVE_FILE", "LeaseLauncher"]

ALIVE_FILE = "submit-side.alive"
"""In a run's script folder; `QPUExecutor` touches it for as long as the submit side lives."""


class LeaseLauncher(Launcher):
    """Holds one lease for a whole block, outside srun, and gives it back whatever the workers do.

    The block's own job becomes the supervisor (`qpu lease exec`): it adopts the lease that the
    site acquired for the job, or acquires one; runs the inner launcher's command under it; and
    releases it when that ends, at SIGTERM, or when the submit side is dead.

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
        inner = self.inner(command, tasks_per_node, nodes_per_block, script_dir)
        end = f"BLOCK_{uuid.uuid4().hex}"
        options = [] if self.qpu is None else [f"--qpu={self.qpu}"]
        alive = Path(script_dir, ALIVE_FILE).absolute()
        if alive.exists():
            options.append(f"--alive='{alive}'")
        return (
            f"QPU_BLOCK=$(cat <<'{end}'\n{inner}\n{end}\n)\n"
            f'exec qpu lease exec {" ".join(options)} -- bash -c "$QPU_BLOCK"\n'
        )
