"""How a provider's blocks are started: under a lease, or as classical blocks of a stage."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

from parsl_ext.launcher import LeaseLauncher
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.abandoned import ALIVE_SECONDS

__all__ = ["BlockLauncher", "ClassicalBlocks", "choose_launchers"]

_LOOK_SECONDS = 5.0

# Only changes of the modification time count: two hosts' clocks need not agree. The file is opened,
# because on NFS `stat` alone may answer from a cache for up to a minute (nfs(5)). `kill 0` reaches
# the whole job script, as scancel does.
_WATCH = """block_alive={alive}
if [ ! -e "$block_alive" ]; then
    echo "the program that submitted this block has ended: $block_alive is gone" >&2
    exit 1
fi
(
    looks=0
    while [ $looks -lt {looks} ]; do
        sleep {seconds}
        now=$(stat -c %y - 2>/dev/null <"$block_alive")
        if [ -n "$now" ] && [ "$now" != "$last" ]; then looks=0; else looks=$((looks + 1)); fi
        last=$now
    done
    echo "$block_alive is no longer touched: the submitting process has ended" >&2
    kill 0
) &
block_watch=$!
trap 'kill $block_watch 2>/dev/null' EXIT
"""


class BlockLauncher(Protocol):
    """Wraps the command of a block that ends when its program no longer touches a file."""

    def wrap(
        self,
        command: str,
        tasks_per_node: int,
        nodes_per_block: int,
        script_dir: str,
        *,
        alive: Path,
        fallback: Sequence[str] | None = None,
    ) -> str:
        """Return lines of a job script."""


class ClassicalBlocks:
    """Starts blocks that use no QPU.

    A block may wait for its stage for hours, and its program may die meanwhile. Parsl's workers do
    not notice that (2026.10.26), and would keep the block's nodes until the walltime.

    Args:
        inner: The launcher that starts the workers.
    """

    def __init__(self, inner: Launcher) -> None:
        self._inner = inner

    def wrap(
        self,
        command: str,
        tasks_per_node: int,
        nodes_per_block: int,
        script_dir: str,
        *,
        alive: Path,
        fallback: Sequence[str] | None = None,  # noqa: ARG002 - it uses no QPU
    ) -> str:
        """Wrap the command of a block that ends when `alive` is no longer touched."""
        looks = round(ALIVE_SECONDS / _LOOK_SECONDS)
        watch = _WATCH.format(alive=shlex.quote(str(alive)), looks=looks, seconds=_LOOK_SECONDS)
        inner: str = self._inner(command, tasks_per_node, nodes_per_block, script_dir)
        return watch + inner


def choose_launchers(
    launcher: Launcher | None, qpus: str, stage: str | None
) -> tuple[Launcher, BlockLauncher]:
    """Return the launcher of a provider, as Parsl sees it, and what starts its blocks.

    Args:
        launcher: The launcher that the user chose, if any.
        qpus: The names of the block's QPUs; empty if it uses none.
        stage: The name of the stage that the blocks belong to.

    Raises:
        RequestError: The launcher is for another QPU or another stage.
    """
    if not qpus:
        if isinstance(launcher, LeaseLauncher):
            raise RequestError(
                "qpu=None: a block without a QPU has no lease, but its launcher is a "
                "`LeaseLauncher`. Name the QPU, or leave the launcher out."
            )
        launcher = SingleNodeLauncher() if launcher is None else launcher
        return launcher, ClassicalBlocks(launcher)
    launcher = LeaseLauncher() if launcher is None else launcher
    if isinstance(launcher, LeaseLauncher):
        leased = launcher.for_qpu(qpus, stage)
        return leased, leased
    # Some executors insist on a launcher of their own, for example Parsl's `MPIExecutor`.
    return launcher, LeaseLauncher(qpu=qpus, inner=launcher, stage=stage)
