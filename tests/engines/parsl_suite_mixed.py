"""A configuration for Parsl's own tests with many options, like its `htex_local_alternate`."""

from parsl.config import Config
from parsl.data_provider.file_noop import NoOpFileStaging
from parsl.data_provider.http import HTTPInTaskStaging
from parsl.data_provider.zip import ZipFileStaging
from parsl.dataflow.memoization import BasicMemoizer
from parsl.monitoring import MonitoringHub

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider


def fresh_config() -> Config:
    provider = QPUSlurmProvider(
        qpu="ibm_quick",
        init_blocks=0,
        max_blocks=2,
        launcher=LeaseLauncher(),
        status_polling_interval=1,
    )
    executor = QPUExecutor(
        provider=provider,
        lanes=2,
        max_workers_per_node=4,
        storage_access=[ZipFileStaging(), HTTPInTaskStaging(), NoOpFileStaging()],
        worker_debug=True,
        heartbeat_period=2,
        heartbeat_threshold=5,
        poll_period=100,
        encrypted=True,
        block_error_handler=False,
    )
    return Config(
        executors=[executor],
        strategy="simple",
        strategy_period=0.5,
        memoizer=BasicMemoizer(checkpoint_mode="task_exit"),
        retries=2,
        monitoring=MonitoringHub(resource_monitoring_interval=1),
    )
