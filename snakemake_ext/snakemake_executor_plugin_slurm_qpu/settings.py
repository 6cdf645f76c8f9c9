"""The plugin's settings: those of the stock Slurm executor, and some of its own."""

# No `from __future__ import annotations`: Snakemake reads the fields' types at run time.
from dataclasses import dataclass, field

from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings

from qrmi_workflows.lease.stage import IDLE_SECONDS

__all__ = ["ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(SlurmSettings):
    """The stock executor's settings, as `--slurm-qpu-…`, and those of this plugin.

    Attributes:
        nested: Run every rule with a QPU through a Snakemake inside its job.
        mark_all: Let jobs without a QPU leave a completion marker too.
        stage_mode: The mode of the sessions of stages whose rules set none.
        stage_no_warm_up: Have the keepers of stages run no tasks of their own.
        stage_idle: After how many seconds without a job a stage ends.
        stage_time: The time limit of a stage in minutes; that of the partition if 0.
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

    stage_mode: str = field(
        default="auto",
        metadata={
            "help": "Mode of the sessions of stages (`qpu_stage`) whose rules set no `qpu_mode`: "
            "dedicated, batch or auto. With auto, the executor chooses: dedicated for a loop, "
            "whose jobs wait for each other's answers, and batch for a fan-out."
        },
    )

    stage_no_warm_up: bool = field(
        default=False,
        metadata={
            "help": "Do not run a minimal task before the jobs of a stage (`qpu_stage`) start. By "
            "default that is done where the vendor makes a session active only with a task, so "
            "that no job waits on its node for the vendor's queue."
        },
    )

    stage_idle: int = field(
        default=int(IDLE_SECONDS),
        metadata={
            "help": "Seconds after which a stage (`qpu_stage`) ends if it has no job; the next job "
            "opens it again."
        },
    )

    stage_time: int = field(
        default=0,
        metadata={
            "help": "Time limit, in minutes, of the job that holds the QPU of a stage "
            "(`qpu_stage`). With 0, that of the partition."
        },
    )
