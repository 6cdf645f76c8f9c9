"""Parsl apps that hold a QPU: a Slurm provider, a lease launcher, an executor and `qpu_app`."""
