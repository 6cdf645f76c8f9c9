"""Ready-made Parsl configurations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parsl.config import Config
from parsl.executors.base import ParslExecutor
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.memo import QPUMemoizer, register_memo_types
from parsl_ext.providers.slurm import QPUSlurmProvider
from parsl_ext.retries import qpu_retry_handler
from qrmi_workflows.config.qpus import find_config, load_qpus, select_qpu

__all__ = ["qpu_config"]

_IDLE_SECONDS = 30.0  # Parsl's default of two minutes is long while others wait for the QPU


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

    Blocks that are idle for half a minute release the QPU. A failed call is retried if another
    attempt may succeed (see `qpu_retry_handler`)::

        with parsl.load(qpu_config("ibm_fez", walltime="00:30:00")):
            ...

    Parameters
    ----------
    qpu : str
        The QPU's name.
    local : bool
        Whether to run without a scheduler. A block is then a process on this machine, and
        `$QPU_CONFIG` defines the QPUs, for example those of `qpu emulator serve`.
    lanes, max_workers_per_node, address
        As in `QPUExecutor`.
    executors : iterable of ParslExecutor
        More executors, for classical apps. Each app then names its executors (`executors=["…"]`).
    checkpoint : bool
        Whether to keep the results of `cache=True` apps in `run_dir` and use those of earlier runs.
    retries : int
        How many times a failed call is retried.
    run_dir : str
        The folder for Parsl's logs, scripts and checkpoints.
    **provider
        Arguments of `QPUSlurmProvider`, or of Parsl's `LocalProvider` if `local` is true.

    Returns
    -------
    Config
        The configuration, for `parsl.load`.

    Raises
    ------
    UnknownQPUError
        The site policy does not offer the QPU, or `qrmi_config.json` does not define it.
    ConfigError
        There is no usable site policy, or no `qrmi_config.json`.
    """
    blocks = _local_provider(qpu, provider) if local else QPUSlurmProvider(qpu=qpu, **provider)
    if checkpoint:
        register_memo_types()
    executor = QPUExecutor(
        provider=blocks, lanes=lanes, max_workers_per_node=max_workers_per_node, address=address
    )
    return Config(
        executors=[executor, *executors],
        memoizer=QPUMemoizer(checkpoint_mode="task_exit" if checkpoint else None),
        retries=retries,
        retry_handler=qpu_retry_handler,
        run_dir=run_dir,
        max_idletime=_IDLE_SECONDS,
    )


def _local_provider(qpu: str, arguments: dict[str, Any]) -> ExecutionProvider:
    path = find_config()
    select_qpu(qpu, load_qpus(path), path)  # refuses a QPU that the file does not define
    return LocalProvider(launcher=LeaseLauncher(qpu=qpu), **arguments)
