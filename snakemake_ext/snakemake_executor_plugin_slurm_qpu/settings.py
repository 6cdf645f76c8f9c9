"""The plugin's settings: those of the stock Slurm executor, and two of its own."""

# No `from __future__ import annotations`: Snakemake reads the fields' types at run time.
from dataclasses import dataclass, field

from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings

__all__ = ["ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(SlurmSettings):
    """The stock executor's settings, as `--slurm-qpu-…`, and two of this plugin.

    Attributes:
        nested: Run every rule with a QPU through a Snakemake inside its job.
        mark_all: Let jobs without a QPU leave a completion marker too.
    """

    nested: bool = field(
        default=False,
        metadata={
            "help": "Run `shell:` rules with a QPU through a Snakemake inside the job, as the "
            "stock executor does. By default the job runs the shell command itself, which starts "
            "seconds earlier."
        },
    )

    mark_all: bool = field(
        default=False,
        metadata={
            "help": "Let jobs without a QPU leave a completion marker too, so that Snakemake "
            "notices their end within a second. This appends the writing of a file to their "
            "command; without this option they run as under the stock executor, unless Slurm "
            "would forget them before they are checked."
        },
    )
