"""Parsl apps that hold a QPU: a Slurm provider, a lease launcher, an executor and `qpu_app`."""

from parsl_ext.apps import block_lease, qpu_app
from parsl_ext.executor import QPUExecutor
from parsl_ext.launcher import LeaseLauncher
from parsl_ext.provider import QPUProvider, QPUSlurmProvider

__all__ = [
    "LeaseLauncher",
    "QPUExecutor",
    "QPUProvider",
    "QPUSlurmProvider",
    "block_lease",
    "qpu_app",
]
