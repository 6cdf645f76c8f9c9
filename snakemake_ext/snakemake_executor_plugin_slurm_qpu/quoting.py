"""Quote the file names and wildcards that are passed to the Snakemake inside a job.

Snakemake quotes them with Python's `repr` (`utils.format_cli_value` of
snakemake-interface-executor-plugins 9.4.0). A shell reads such a string differently if it has a
backslash, or a quote beside a dollar sign (https://github.com/snakemake/snakemake/issues/2981).
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

__all__ = ["quote_job_args", "require_parsable_wildcards"]


def quote_job_args(arguments: str, job: Any, tmpdir: str) -> str:
    """Quote the target jobs and the files to wait for, for a shell.

    Args:
        arguments: The arguments as `get_job_args` of the interface has rendered them.
        job: The job, or group of jobs.
        tmpdir: The executor's temporary folder, the first of the files that each job waits for.
    """
    # Rendered again as the interface does (`RealExecutor.get_job_args` and
    # `RemoteExecutor.get_job_args` in 9.4.0), found in the text, and replaced. More than 20 files
    # are passed in a file of their own: then the third string is not found, and nothing is done.
    targets = encode_target_jobs_cli_args(job.get_target_spec())
    files = list(job.get_wait_for_files())
    for values in (targets, [tmpdir], files):
        if values:
            rendered = format_cli_arg("", values).strip()
            arguments = arguments.replace(rendered, shlex.join(values), 1)
    return arguments


def require_parsable_wildcards(job: Any) -> None:
    """Refuse a job with a wildcard that the Snakemake inside the job would misread.

    Raises:
        QPURequestError: A wildcard's value has a comma, or starts or ends with a quote.
    """
    for rule, wildcards in job.get_target_spec():
        for name, value in wildcards.items():
            if not _survives_round_trip(TargetSpec(rule, {name: value})):
                raise QPURequestError(
                    f"rule {rule!r}: wildcard {name}={str(value)!r} must not contain a comma, or "
                    "start or end with a quote, because a Snakemake inside a job would misread it. "
                    "Rename the file, or use the QPU in a plain `shell:` rule outside of groups, "
                    "whose job needs no Snakemake."
                )


def _survives_round_trip(spec: TargetSpec) -> bool:
    # Ask the parser itself, so that the check disappears with the bugs. In snakemake 9.27.1, commas
    # split a value (https://github.com/snakemake/snakemake/issues/2366), and quotes are stripped
    # from its ends (https://github.com/snakemake/snakemake/issues/4298). Imported here, like all of
    # Snakemake's own modules (see `plain_shell`).
    from snakemake.target_jobs import parse_target_jobs_cli_args

    try:
        return bool(parse_target_jobs_cli_args(encode_target_jobs_cli_args([spec])) == [spec])
    except ValueError:
        return False
