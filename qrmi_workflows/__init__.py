"""Quantum computers as a native part of HPC workflows: leases, tasks and results on QRMI."""
