"""What a job inherits from the lease under which it was submitted, and must not use.

`sbatch` gives a job the environment of the command that submits it. Under `qpu lease exec`, or in a
job of a site that acquires QPUs, that is the environment of a lease that another job holds.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from qrmi_workflows.config.job import job_of_leases, without_leases
from qrmi_workflows.config.variables import QPU_KILL_WAIT, QPU_LEASE_JOB, STAGE_VARIABLES
from qrmi_workflows.schedulers import this_job

__all__ = ["discard_inherited_leases"]


def discard_inherited_leases(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove the leases and the stage of another job from this process's environment.

    Args:
        environ: The environment to change.

    Raises:
        ConfigError: The two lists of QPUs and types differ in length.
    """
    job = this_job(environ)
    if job is None:
        return
    discarded: set[str] = set()
    # A site's plugin may have set the leases anew, but not the variables of our own stage.
    if environ.get(QPU_LEASE_JOB, job.id) != job.id:
        discarded |= {*STAGE_VARIABLES, QPU_KILL_WAIT}
    if (job_of_leases(environ) or job.id) != job.id:
        discarded |= environ.keys() - without_leases(environ).keys()
    for name in discarded & environ.keys():
        del environ[name]
