"""The plugin's settings: those of the stock Slurm executor, and our own."""

# No `from __future__ import annotations`: Snakemake reads the fields' types at run time.
from dataclasses import dataclass, field

from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings

__all__ = ["ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(SlurmSettings):
    """The stock executor's settings, as `--slurm-qpu-…`, and our own."""

    nested: bool = field(
        default=False,
        metadata={
            "help": "Run the `shell:` rules that hold a QPU through a Snakemake of their own "
            "inside the job, as the stock executor does. By default the job runs the shell command "
            "itself, which starts seconds earlier."
        },
    )

    mark_all: bool = field(
        default=False,
        metadata={
            "help": "Let the jobs without a QPU leave a completion marker too, so that their end "
            "is noticed within a second. Their command gets `&& touch MARKER`; without this "
            "option they run exactly as under the stock executor."
        },
    )
