"""The provider for Slurm."""

from __future__ import annotations

import re

import typeguard
from parsl.launchers.base import Launcher

from parsl_ext.providers.choosing import ChoosingProvider
from parsl_ext.stages import QPUStage
from qrmi_workflows.config.constraints import parse_fallback, parse_qpus
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.slurm_options import refuse_options

__all__ = ["QPUSlurmProvider"]

_TIME = re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}")  # sbatch(1), --time


class QPUSlurmProvider(ChoosingProvider):
    """Blocks that are Slurm jobs and hold a QPU, as the site grants it: GRES, licence or `--qpu`.

    A block spends most of its time waiting for the QPU, so by default its job is small: one node,
    one core, not exclusive. By default, Slurm never requeues it.

    Parameters
    ----------
    qpu : str or list of str, or None
        The QPU's name, or those of several QPUs that each block holds together, as a list or as
        `"a+b"`. A pattern (`"ibm_*"`) or alternatives (`"ibm_fez|ibm_torino"`) leave a choice,
        which is made when the first block is submitted, and holds for all blocks. None for
        classical blocks of a stage, or, with one of the conditions below, for any QPU.
    count : int
        The number of Slurm's units of each QPU. Default is 1.
    site : str | None
        Path of the site policy. If None, it is found as the `qpu` command finds it.
    partition, account, qos, constraint, clusters : str | None
        As in Parsl's `SlurmProvider`.
    nodes_per_block, init_blocks, min_blocks, max_blocks, parallelism, walltime, cmd_timeout
        As in Parsl's `SlurmProvider`.
    cores_per_node, mem_per_node : int | None
        Cores, and memory in GB, of the block on each node.
    exclusive : bool
        Whether the block has its nodes to itself. Default is False.
    requeue : bool
        Whether Slurm may requeue the block's job, for example after a node failure. Default is
        False, because the job would use the QPU again.
    scheduler_options : str
        Lines with further `#SBATCH` directives.
    worker_init : str
        Commands to run before the workers start.
    launcher : Launcher | None
        The launcher. If None, a `LeaseLauncher`. Any other launcher runs inside of one.
    status_polling_interval : int
        Seconds between two queries of the queue. Default is 10.
    qpu_min_qubits : int | None
        How many qubits each QPU must have at least.
    qpu_type : str | None
        The resource type of each QPU: a name, a pattern, or alternatives.
    qpu_where : str | None
        An expression over what is known of each QPU: `"queue < 10"`.
    stage : QPUStage | str | None
        The stage that the blocks belong to, or its name. They use the lease of the stage's keeper,
        which is opened before the first of them, and wait in Slurm's queue until it is ready.

    qpu_fallback : str or list of str, or None
        The QPUs to go on with if the QPU goes away, in order. Calls move their open tasks by
        themselves if their block may use the next QPU; otherwise, the next blocks hold that one,
        and the calls are run again there. The error of such a call is a `StepMovedError`, which
        costs no retry (`qpu_retry_handler`); calls that are lost with their block cost one.

    Raises
    ------
    UnknownQPUError
        The site policy does not offer the QPU.
    RequestError
        `walltime` is not a time, `count` is not a positive integer, `scheduler_options` would
        override the request for the QPU, the launcher is for another QPU or stage, or the stage
        cannot serve these blocks.
    ConfigError
        There is no usable site policy.
    """

    @typeguard.typechecked
    def __init__(
        self,
        qpu: str | list[str] | None,
        count: int = 1,
        site: str | None = None,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        clusters: str | None = None,
        nodes_per_block: int = 1,
        cores_per_node: int | None = 1,
        mem_per_node: int | None = None,
        init_blocks: int = 1,
        min_blocks: int = 0,
        max_blocks: int = 1,
        parallelism: float = 1,
        walltime: str = "00:10:00",
        exclusive: bool = False,
        requeue: bool = False,
        scheduler_options: str = "",
        worker_init: str = "",
        cmd_timeout: int = 30,
        launcher: Launcher | None = None,
        status_polling_interval: int = 10,
        stage: QPUStage | str | None = None,
        qpu_min_qubits: int | None = None,
        qpu_type: str | None = None,
        qpu_where: str | None = None,
        qpu_fallback: str | list[str] | None = None,
    ) -> None:
        refuse_options(scheduler_options, Slurm.request_options, where="scheduler_options")
        _require_time_limit(walltime)
        _require_stage_options(stage, scheduler_options, clusters)
        wanted = parse_qpus(qpu, min_qubits=qpu_min_qubits, type=qpu_type, where=qpu_where)
        has_qpu = qpu is not None or any(each.has_conditions for each in wanted)
        super().__init__(
            constraints=wanted if has_qpu else (),
            count=count,
            label="slurm-qpu",
            fallback=parse_fallback(qpu_fallback),
            stage=stage,
            scheduler=Slurm(clusters=clusters),
            site=site,
            nodes_per_block=nodes_per_block,
            init_blocks=init_blocks,
            min_blocks=min_blocks,
            max_blocks=max_blocks,
            parallelism=parallelism,
            walltime=walltime,
            cmd_timeout=cmd_timeout,
            scheduler_options=scheduler_options,
            worker_init=worker_init,
            launcher=launcher,
            status_polling_interval=status_polling_interval,
            account=account,
            partition=partition,
        )
        self.qpu = "*" if qpu is None and has_qpu else qpu
        self.qpu_min_qubits = qpu_min_qubits
        self.qpu_type = qpu_type
        self.qpu_where = qpu_where
        self.qpu_fallback = qpu_fallback
        self.partition = partition
        self.account = account
        self.qos = qos
        self.constraint = constraint
        self.clusters = clusters
        self.cores_per_node = cores_per_node
        self.mem_per_node = mem_per_node
        self.exclusive = exclusive
        self.requeue = requeue

    def job_options(self, tasks_per_node: int) -> list[str]:
        """Return sbatch's options for a block, without those that ask for the QPU."""
        cores = None if self.cores_per_node is None else max(1, self.cores_per_node)
        values = {
            "nodes": self.nodes_per_block,
            "ntasks-per-node": tasks_per_node,
            "time": self.walltime,
            "cpus-per-task": cores and max(1, cores // tasks_per_node),
            "mem": self.mem_per_node and f"{self.mem_per_node}G",
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
        }
        options = [f"--{key}={value}" for key, value in values.items() if value]
        options += ["--exclusive"] if self.exclusive else []
        options += [] if self.requeue else ["--no-requeue"]
        return options


def _require_time_limit(walltime: str) -> None:
    """Refuse what is not a time in one of sbatch's forms, and zero, which means no limit."""
    if not _TIME.fullmatch(walltime) or not walltime.strip("0:-"):
        raise RequestError(
            f"walltime={walltime!r}: must be a time above zero, as HH:MM:SS, D-HH:MM:SS or "
            'minutes. Write for example "00:30:00".'
        )


def _require_stage_options(
    stage: QPUStage | str | None, scheduler_options: str, clusters: str | None
) -> None:
    """Refuse what would detach a block from its stage."""
    if stage is None:
        return
    for name in ("comment", "dependency"):
        if re.search(rf"(?:^|\s)--{name}(?:[=\s]|$)", scheduler_options):
            raise RequestError(
                f"scheduler_options: --{name} would override that of the block's stage. Remove "
                f"--{name}."
            )
    if clusters is not None:
        raise RequestError(
            f"clusters={clusters!r}: the blocks of a stage must be on the cluster of its keeper. "
            "Leave it out."
        )
