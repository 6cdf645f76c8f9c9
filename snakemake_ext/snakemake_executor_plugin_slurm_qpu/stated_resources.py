"""What a rule itself says about its QPU, apart from defaults and before Snakemake rounds it.

A rule that names a QPU but asks for none is a mistake: its job would use the QPU without holding
it. A profile that names one for all rules (`--default-resources`) is not a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qrmi_workflows.errors import RequestError
from snakemake_executor_plugin_slurm_qpu.wishes import CONDITIONS

__all__ = ["require_whole_count", "stated_resources", "stray_resource"]


def stated_resources(rule: Any) -> Mapping[str, Any]:
    """Return the resources that a rule sets, or that `--set-resources` sets for it."""
    # As `Workflow.rule` of snakemake 9.27.1 merges them over the defaults.
    own = rule.ruleinfo.resources if rule.ruleinfo is not None else None
    overwritten = rule.workflow.resource_settings._parsed_overwrite_resources.get(rule.name, {})
    return {**(own[1] if own else {}), **overwritten}


def stray_resource(job: Any) -> tuple[str, Any] | None:
    """Return a resource of a job without a QPU that only makes sense with one.

    `None` if the rule itself sets `qpu`: `qpu=0`, or a function that returns 0, is deliberate.
    """
    stated = stated_resources(job.rule)
    if job.is_norun or stated.get("qpu") is not None:
        return None
    for name in ("qpu_name", *CONDITIONS, "qpu_exclusive", "qpu_coalesce", "qpu_fallback"):
        if name in stated and (value := job.resources.get(name)):
            return name, value
    return None


def require_whole_count(job: Any) -> None:
    """Refuse a `qpu` that Snakemake would round (`Resource` of snakemake 9.27.1): 0.5 to 0.

    Raises:
        RequestError: It is not a whole number.
    """
    count = _unrounded_count(job)
    if isinstance(count, float) and not count.is_integer():
        raise RequestError(
            f"qpu={count!r}: must be a positive integer, or 0 for no QPU; Snakemake would round it "
            f"to {round(count)}. Ask for qpu=1."
        )


def _unrounded_count(job: Any) -> Any:
    own = stated_resources(job.rule).get("qpu")
    if callable(own):
        with suppress(Exception):  # it needs what only Snakemake has; the rounded value is used
            count, _ = job.rule.apply_input_function(
                own,
                job.wildcards,
                raw_exceptions=True,
                input=job.input,
                attempt=job.attempt,
                threads=job.threads,
                rulename=job.rule.name,
            )
            return count
        return None
    resource = job.rule.resources.get("qpu")
    written = getattr(resource, "raw", None)  # on the command line or in a profile
    if isinstance(written, str):
        with suppress(ValueError):
            return float(written)
    return own
