"""Ready configurations of Parsl."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors.base import ParslExecutor
from parsl.providers import LocalProvider

from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.memo import register_memo_types
from parsl_ext.providers.slurm import QPUSlurmProvider
from parsl_ext.retries import qpu_retry_handler
from qrmi_workflows.config.qpus import find_config, load_qpus, select_qpu

__all__ = ["qpu_config"]

_IDLE_SECONDS = 30.0  # a QPU that nobody uses belongs to others; Parsl's default is two minutes


def qpu_config(
    qpu: str,
    *,
    local: bool = False,
    lanes: int | None = None,
    max_workers_per_node: int | None = None,
    address: str | None = None,
    executors: Iterable[ParslExecutor] = (),
    checkpoint: bool = False,
    retries: int = 2,
    run_dir: str = "runinfo",
    **provider: Any,
) -> Config:
    """Build a configuration whose executor "qpu" runs apps in blocks that hold a QPU.

    Blocks that are idle for half a minute give the QPU back. What a repetition may mend is retried
    (see `qpu_retry_handler`)::

        with parsl.load(qpu_config("ibm_fez", walltime="00:30:00")):
            ...

    Parameters
    ----------
    qpu : str
        The QPU's name.
    local : bool
        Without a scheduler: a block is a process here, and `$QPU_CONFIG` says which QPUs there are,
        such as those of `qpu emulator serve`.
    lanes, max_workers_per_node, address
        As in `QPUExecutor`.
    executors : iterable of ParslExecutor
        Others, for classical apps. Apps then say which they run on (`executors=["…"]`).
    checkpoint : bool
        Whether results of `cache=True` apps are kept in `run_dir`, and those of earlier runs used.
    retries : int
        How often a call is repeated.
    run_dir : str
        Where Parsl writes its logs, scripts and checkpoints.
    **provider
        Arguments of `QPUSlurmProvider`, or of Parsl's `LocalProvider` with `local`.

    Returns
    -------
    Config
        For `parsl.load`.

    Raises
    ------
    UnknownQPUError
        The site policy does not offer the QPU, or `qrmi_config.json` does not define it.
    ConfigError
        There is no usable site policy, or no `qrmi_config.json`.
    """
    if local:
        path = find_config()
        select_qpu(qpu, load_qpus(path), path)
        blocks = LocalProvider(launcher=LeaseLauncher(qpu=qpu), **provider)
    else:
        blocks = QPUSlurmProvider(qpu=qpu, **provider)
    if checkpoint:
        register_memo_types()
    executor = QPUExecutor(
        provider=blocks, lanes=lanes, max_workers_per_node=max_workers_per_node, address=address
    )
    return Config(
        executors=[executor, *executors],
        memoizer=BasicMemoizer(checkpoint_mode="task_exit") if checkpoint else None,
        retries=retries,
        retry_handler=qpu_retry_handler,
        run_dir=run_dir,
        max_idletime=_IDLE_SECONDS,
    )
