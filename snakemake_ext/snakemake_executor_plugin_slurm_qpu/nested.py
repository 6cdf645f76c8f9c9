"""Names that the Snakemake inside a job is given: whole, whatever characters they have.

Snakemake writes its own call with Python's `repr`, which a shell reads otherwise where a name has
a backslash, or a dollar sign beside a quote.
"""

from __future__ import annotations

import shlex
from typing import Any

from snakemake_interface_executor_plugins.utils import (
    TargetSpec,
    encode_target_jobs_cli_args,
    format_cli_arg,
)

from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError

__all__ = ["quote_names", "require_readable"]


def quote_names(arguments: str, job: Any, folder: str) -> str:
    """Quote the names of a job, and of what it waits for, as a shell reads them.

    Args:
        arguments: What Snakemake has rendered for the job.
        job: The job, or group of jobs.
        folder: The executor's temporary folder, which each job waits for first.
    """
    targets = encode_target_jobs_cli_args(job.get_target_spec())
    files = list(job.get_wait_for_files())
    for values in (targets, [folder], files):
        if values:
            rendered = format_cli_arg("", values).strip()
            arguments = arguments.replace(rendered, shlex.join(values), 1)
    return arguments


def require_readable(job: Any) -> None:
    """Refuse a job with a wildcard that the Snakemake inside it would read otherwise.

    Raises:
        QPURequestError: There is one.
    """
    for rule, wildcards in job.get_target_spec():
        for name, value in wildcards.items():
            if not _is_readable(TargetSpec(rule, {name: value})):
                raise QPURequestError(
                    f"rule {rule!r}: wildcard {name}={str(value)!r} has a comma, or a quote at an "
                    "end, which a Snakemake inside a job misreads; allowed is anything else. "
                    "Rename the file, or let a plain `shell:` rule outside of groups use the QPU: "
                    "its job needs no Snakemake."
                )


def _is_readable(spec: TargetSpec) -> bool:
    # Not at import: Snakemake imports every plugin, and would not start if it had moved this.
    from snakemake.target_jobs import parse_target_jobs_cli_args

    try:
        return bool(parse_target_jobs_cli_args(encode_target_jobs_cli_args([spec])) == [spec])
    except ValueError:
        return False
