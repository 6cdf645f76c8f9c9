"""Snakemake executor plugin: rules with `qpu=1` run as Slurm jobs that hold a QPU."""
