"""Ready-made rules for a workflow to import: transpile, sample, estimate, Pulser and QPU usage.

In a Snakefile::

    from snakemake_executor_plugin_slurm_qpu.rules import SNAKEFILE

    module qpu:
        snakefile: SNAKEFILE
        config: config

    use rule * from qpu as qpu_*
"""

from pathlib import Path

__all__ = ["SNAKEFILE"]

SNAKEFILE = str(Path(__file__).with_name("qpu.smk"))
"""The path of the rules' Snakefile, for `snakefile:` of a `module`."""
