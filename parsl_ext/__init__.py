"""Parsl apps that hold a QPU: a Slurm provider, a lease launcher, an executor and `qpu_app`."""

from parsl_ext.apps import block_lease, qpu_app
from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.memo import register_memo_types
from parsl_ext.providers.base import QPUProvider
from parsl_ext.providers.slurm import QPUSlurmProvider

__all__ = [
    "LeaseLauncher",
    "QPUExecutor",
    "QPUProvider",
    "QPUSlurmProvider",
    "block_lease",
    "qpu_app",
    "register_memo_types",
]
