"""Where a workflow's lease records are kept, and the event that reports them.

A Snakemake inside a job has no logger plugins, so it cannot log events. Each lease leaves a lease
record instead; the executor reads a job's records when it has ended, logs them, and keeps them with
the names of their rules for the workflow's report.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["EVENT", "RECORDS"]

EVENT = "qpu_lease"
"""The event of the log records, for logger plugins; `lease` in their `extra` has the record."""

RECORDS = Path(".snakemake/slurm_qpu/leases.jsonl")
"""The workflow's lease records, one JSON object a line, with the rule that each belongs to."""
