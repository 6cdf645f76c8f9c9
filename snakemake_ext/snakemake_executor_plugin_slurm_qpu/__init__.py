"""Snakemake executor plugin: rules with `qpu=1` run as Slurm jobs that hold a QPU.

Every `snakemake` command imports this package, whichever executor it uses, and fails if the import
fails. So the import needs neither Slurm nor QRMI nor Snakemake's own modules, and is quick. Inside
the jobs of a run it also amends Snakemake.
"""

import os

from qrmi_workflows.config.variables import QPU_SNAKEMAKE_JOB
from snakemake_executor_plugin_slurm_qpu.amendments import amend_snakemake
from snakemake_executor_plugin_slurm_qpu.executor import Executor
from snakemake_executor_plugin_slurm_qpu.settings import ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

if QPU_SNAKEMAKE_JOB in os.environ:
    amend_snakemake()
