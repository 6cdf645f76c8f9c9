"""What tells the commands and processes of one attempt at a step from each other."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid

from qrmi_workflows.schedulers import this_job

__all__ = ["PROCESS", "command_digest"]

PROCESS = uuid.uuid4().hex[:16]
"""This process and its forks."""


def command_digest() -> str:
    """Identify this process's command: the same command again in one attempt is a retry."""
    job = this_job()
    ranks = [
        job.rank if job else None,
        *(os.environ.get(name) for name in ("PMIX_RANK", "PMI_RANK")),
    ]
    return hashlib.sha256(os.fsencode(repr([sys.argv, ranks]))).hexdigest()[:16]
