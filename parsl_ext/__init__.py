"""Parsl apps on QPUs: a Slurm provider, a lease launcher, an executor and `qpu_app`."""

from parsl_ext.apps import qpu_app, qpu_bash_app
from parsl_ext.block import block_lease
from parsl_ext.block_errors import BlockErrors
from parsl_ext.configs import qpu_config
from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.memo import QPUMemoizer, register_memo_types
from parsl_ext.payload_app import run_payload
from parsl_ext.providers.base import QPUProvider
from parsl_ext.providers.slurm import QPUSlurmProvider
from parsl_ext.retries import qpu_retry_handler
from parsl_ext.stages import QPUStage

__all__ = [
    "BlockErrors",
    "LeaseLauncher",
    "QPUExecutor",
    "QPUMemoizer",
    "QPUProvider",
    "QPUSlurmProvider",
    "QPUStage",
    "block_lease",
    "qpu_app",
    "qpu_bash_app",
    "qpu_config",
    "qpu_retry_handler",
    "register_memo_types",
    "run_payload",
]
