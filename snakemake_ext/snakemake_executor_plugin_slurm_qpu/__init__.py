"""Snakemake executor plugin: rules with `qpu=1` run as Slurm jobs that hold a QPU.

Snakemake imports this package at every start, whatever executor is asked for: it must import
without Slurm and without QRMI, and quickly.
"""

from snakemake_executor_plugin_slurm_qpu.executor import Executor
from snakemake_executor_plugin_slurm_qpu.settings import ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
