"""Ready-made Parsl configurations."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from parsl.config import Config
from parsl.executors.base import ParslExecutor
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_ext.emulated import require_emulation
from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.memo import QPUMemoizer, register_memo_types
from parsl_ext.providers.choices import BlockChoice
from parsl_ext.providers.slurm import QPUSlurmProvider
from parsl_ext.retries import qpu_retry_handler
from qrmi_workflows.choice.candidates import Asker
from qrmi_workflows.config.constraints import parse_fallback, parse_qpus, plain_names
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.qpus import find_config, load_dynamic, load_qpus, select_qpu
from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.acquire import ACQUIRE_SECONDS

__all__ = ["qpu_config"]

_IDLE_SECONDS = 30  # Parsl's default of two minutes is long while others wait for the QPU


def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


_OF_CONFIG = _parameters(Config) - {"executors"}
_OF_SLURM = _parameters(QPUSlurmProvider) - {"qpu"}
_OF_LOCAL = _parameters(LocalProvider)


def qpu_config(
    qpu: str | list[str] | None,
    *,
    local: bool = False,
    lanes: int | None = None,
    max_workers_per_node: int | None = None,
    address: str | None = None,
    executors: Iterable[ParslExecutor] = (),
    checkpoint: bool = False,
    max_idletime: float | None = None,
    qpu_idletime: float | None = None,
    **options: Any,
) -> Config:
    """Build a configuration whose executor "qpu" runs apps in blocks that hold a QPU.

    Blocks that are idle for half a minute release the QPU. A failed call is retried if another
    attempt may succeed (see `qpu_retry_handler`)::

        with parsl.load(qpu_config("ibm_fez", walltime="00:30:00")):
            ...

    Parameters
    ----------
    qpu : str or list of str
        The QPU's name, or those of several QPUs that each block holds, as a list or as `"a+b"`.
        Apps then name theirs: `qpu_app(qpu=…)`. A pattern, alternatives (`"a|b"`) and the
        conditions `qpu_min_qubits`, `qpu_type`, `qpu_where` leave a choice; see `QPUSlurmProvider`.
    local : bool
        Whether to run without a scheduler. A block is then a process on this machine, and
        `$QPU_CONFIG` defines the QPUs that are not emulated (`emulated:fez`). Options that only a
        scheduler understands (`walltime`) have no effect.
    lanes, max_workers_per_node, address
        As in `QPUExecutor`.
    executors : iterable of ParslExecutor
        More executors, for classical apps. Each app then names its executors (`executors=["…"]`).
    checkpoint : bool
        Whether to keep the results of `cache=True` apps in `run_dir` and use those of earlier runs.
    max_idletime : float | None
        How many seconds the blocks of any executor may be idle. If None, half a minute for those
        that hold the QPU, and Parsl's own default for the others.
    qpu_idletime : float | None
        The same for blocks that hold the QPU only. Zero releases the QPU as soon as no call for it
        is left: right for a fan-out, or a single call, but not for a loop whose next call depends
        on the last one's result. If None, as `max_idletime`.
    **options
        Arguments of Parsl's `Config` (`retries`, by default 2; `run_dir`, `strategy`, `monitoring`,
        …) and of `QPUSlurmProvider` (`walltime`, `partition`, `init_blocks`, …).

    Returns
    -------
    Config
        The configuration, for `parsl.load`.

    Raises
    ------
    RequestError
        There is no such argument, or it does not go with another one.
    UnknownQPUError
        The site policy does not offer the QPU, or `qrmi_config.json` does not define it.
    ConfigError
        There is no usable site policy, or no `qrmi_config.json`.
    """
    _require_known(options)
    ours = {name: value for name, value in options.items() if name in _OF_CONFIG}
    blocks = {name: value for name, value in options.items() if name not in _OF_CONFIG}
    scales = ours.get("strategy", "simple") not in (None, "none")
    idle = next((each for each in (qpu_idletime, max_idletime) if each is not None), _IDLE_SECONDS)
    executor = QPUExecutor(
        provider=_local_provider(qpu, blocks) if local else QPUSlurmProvider(qpu=qpu, **blocks),
        lanes=lanes,
        max_workers_per_node=max_workers_per_node,
        address=address,
        max_idletime=idle if scales else None,
    )
    defaults: dict[str, Any] = {"retries": 2, "retry_handler": qpu_retry_handler}
    if max_idletime is not None:
        defaults["max_idletime"] = max_idletime
    return Config(
        executors=[executor, *executors],
        memoizer=_memoizer(checkpoint, ours.pop("memoizer", None)),
        **(defaults | ours),
    )


def _memoizer(checkpoint: bool, given: Any) -> Any:
    if not checkpoint:
        return given or QPUMemoizer()
    if given is not None:
        raise RequestError(
            "qpu_config() was given both `checkpoint` and `memoizer`: use one of them. Make the "
            'memoizer keep checkpoints: `QPUMemoizer(checkpoint_mode="task_exit")`.'
        )
    register_memo_types()
    return QPUMemoizer(checkpoint_mode="task_exit")


def _require_known(options: Mapping[str, Any]) -> None:
    known = _OF_CONFIG | _OF_SLURM | _OF_LOCAL
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise RequestError(
                f"qpu_config() has no argument {name!r}: it takes its own, and those of Parsl's "
                f"`Config` and `QPUSlurmProvider`. {advice}"
            )


def _local_provider(qpu: str | list[str] | None, options: Mapping[str, Any]) -> ExecutionProvider:
    conditions: dict[str, Any]
    conditions = {name: options.get(f"qpu_{name}") for name in ("min_qubits", "type", "where")}
    constraints = parse_qpus(qpu, **conditions)
    names, choice = plain_names(constraints), None
    if names is None:
        choice = BlockChoice(constraints, Asker(for_job=False), None)
        names = [*choice.await_qpus(ACQUIRE_SECONDS)]
    require_emulation(names)
    real = [name for name in names if not is_emulated(name)]
    if real:
        path = find_config()
        for name in real if not load_dynamic(path) else ():
            select_qpu(name, load_qpus(path), path)  # refuses a QPU that the file does not define
    launcher = options.get("launcher")
    if not isinstance(launcher, LeaseLauncher):
        fallback = parse_fallback(options.get("qpu_fallback"))
        launcher = LeaseLauncher(inner=launcher, fallback=fallback)
    known = {name: value for name, value in options.items() if name in _OF_LOCAL}
    launcher = launcher.for_qpu(",".join(names))
    launcher.candidates = None if choice is None else choice.candidates
    return LocalProvider(**{**known, "launcher": launcher})
