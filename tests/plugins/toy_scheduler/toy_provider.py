"""Parsl blocks that are jobs of the toy scheduler and hold a QPU."""

from __future__ import annotations

from parsl_ext import QPUProvider
from qrmi_workflows.schedulers import load_scheduler
from qrmi_workflows.schedulers.base import QPURequest


class ToyProvider(QPUProvider):
    """Provide blocks of one job each."""

    def __init__(self, qpu: str, *, max_blocks: int = 1, walltime: str = "00:10:00") -> None:
        super().__init__(
            label="toy-qpu",
            request=QPURequest(qpu=qpu),
            scheduler=load_scheduler("toy"),
            site=None,
            nodes_per_block=1,
            init_blocks=1,
            min_blocks=0,
            max_blocks=max_blocks,
            parallelism=1,
            walltime=walltime,
            cmd_timeout=30,
            scheduler_options="",
            worker_init="",
            launcher=None,
            status_polling_interval=1,
        )

    def job_options(self, tasks_per_node: int) -> list[str]:
        return []
